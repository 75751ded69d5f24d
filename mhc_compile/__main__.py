"""`python -m mhc_compile`."""

from __future__ import annotations

from mhc_compile.cli import main

raise SystemExit(main())
