"""The eviction policy of `weightd.core.eviction`, simulated against others on traces. See docs/benchmarks.md.

`python -m benchmarks.eviction` simulates, `python -m benchmarks.eviction.record` records what a daemon serves.
"""
