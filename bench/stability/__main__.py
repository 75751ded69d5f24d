"""`python -m bench.stability`: see `bench/stability/run.py`."""

from __future__ import annotations

import sys

from bench.stability.run import main

if __name__ == "__main__":
    sys.exit(main())
