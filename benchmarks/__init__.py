"""Benchmarks: one module for each program; `python -m benchmarks` runs them all."""
