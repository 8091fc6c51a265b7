"""The worker's side: handles into tensors."""
