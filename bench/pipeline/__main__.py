"""`python -m bench.pipeline`: see `bench/pipeline/run.py`."""

from __future__ import annotations

from bench.pipeline.run import main

if __name__ == "__main__":
    main()
