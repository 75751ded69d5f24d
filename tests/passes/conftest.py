"""Failed assertions of the helpers show their values."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.passes.helpers", "tests.passes.streams")
