"""Random fetches, kills and faults for as long as you like: `python -m soak --help`."""
