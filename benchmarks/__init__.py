"""Benchmarks: one small program per line of the table; `python -m benchmarks` runs them all."""
