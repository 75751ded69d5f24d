"""`python -m bench.compile_time`: see `bench/compile_time/run.py`."""

from __future__ import annotations

from bench.compile_time.run import main

if __name__ == "__main__":
    main()
