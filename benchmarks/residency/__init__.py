"""`python -m benchmarks.residency`: what it costs to hold models resident. See docs/benchmarks.md."""
