"""`python -m bench.train`: see `bench/train/run.py`."""

from __future__ import annotations

from bench.train.run import main

if __name__ == "__main__":
    main()
