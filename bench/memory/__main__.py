"""`python -m bench.memory`: see `bench/memory/run.py`."""

from __future__ import annotations

from bench.memory.run import main

if __name__ == "__main__":
    main()
