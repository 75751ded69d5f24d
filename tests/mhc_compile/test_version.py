"""`mhc_compile.__version__`, installed or not."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import mhc_compile

ROOT = Path(__file__).resolve().parents[2]
NOT_INSTALLED = """
import importlib.metadata

def version(name):
    if name == "mhc_compile":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

found, importlib.metadata.version = importlib.metadata.version, version
import mhc_compile
print(mhc_compile.__version__)
"""


def test_it_is_that_of_the_installed_package() -> None:
    assert "__version__" in mhc_compile.__all__
    assert mhc_compile.__version__ == importlib.metadata.version("mhc_compile")


@pytest.mark.slow
def test_a_checkout_that_is_not_installed_has_one_too() -> None:
    done = subprocess.run([sys.executable, "-c", NOT_INSTALLED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Version(done.stdout.strip()) < Version("0.0.1")
