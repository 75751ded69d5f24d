"""`python -m bench.kernels [--steps ...]`: see `bench/gpu.sh`. `--dry-run` needs no GPU, `--budgets` nothing at all."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if "--dry-run" in sys.argv:  # before anything imports Triton
        os.environ["TRITON_INTERPRET"] = "1"
    from bench.kernels.run import main

    main(sys.argv[1:])
