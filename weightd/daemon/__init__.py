"""The process that runs once on each host."""
