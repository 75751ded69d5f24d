"""Benchmarks: `python -m bench` runs all, `python -m bench.train` one. They gate nothing."""
