"""Bytes at rest: segments in shared memory, blobs and state on disk."""
