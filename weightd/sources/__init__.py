"""Bytes elsewhere: origins that name files and let a thread read them."""
