"""Thin gRPC handlers over the engine."""
