from __future__ import annotations

import copy
import pickle
import sys

import pytest

from mhc_compile.errors import MissingDependencyError
from mhc_compile.integrations import register_backend


def test_the_name_joins_the_list() -> None:
    utils = pytest.importorskip("accelerate.utils")
    register_backend()
    register_backend()
    backends = utils.DynamoBackend
    assert backends("MHC") is backends.MHC is backends["MHC"]
    assert [each.value for each in backends].count("MHC") == 1
    assert copy.deepcopy(backends.MHC) is pickle.loads(pickle.dumps(backends.MHC)) is backends.MHC
    assert utils.TorchDynamoPlugin(backend="mhc").to_kwargs()["backend"] == "mhc"
    with pytest.raises(ValueError, match="NOTHING"):
        utils.TorchDynamoPlugin(backend="nothing")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mhc_compile\[hugging-face\]'"):
        register_backend()
