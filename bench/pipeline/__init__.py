"""Pipelines of upgraded models: measured on processes here, and planned past them: `python -m bench.pipeline`."""
