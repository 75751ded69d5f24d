"""Benchmarks: `python -m bench` runs all, `python -m bench.step` one. They gate nothing."""
