"""Benchmarks: weightd and the strongest peers in turn, in the same run, on the same bytes. Ratios are what counts."""
