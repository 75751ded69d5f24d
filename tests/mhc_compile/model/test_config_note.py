"""The note in a Hugging Face config: written with the sites, gone with them, told apart from one of a file."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

import mhc_compile as mhc
from mhc_compile.errors import NotRestoredError
from mhc_compile.model import config_note
from mhc_compile.model.config_note import Note
from mhc_compile.plan.model_plan import ModelPlan
from tests.nets.small import Net, compiled, inputs, made


class Config:
    """Looks like transformers' config."""

    def to_diff_dict(self) -> dict[str, Any]:
        return vars(self)


def configured() -> Any:
    model: Any = made(Net, 1)
    model.config = Config()
    return model


def test_a_note_comes_and_goes_with_the_sites() -> None:
    model = configured()
    mhc.upgrade(model, (inputs(),), config=mhc.Config(streams=2))
    text = json.loads(json.dumps(model.config.to_diff_dict()))["mhc_compile"]
    assert (text["sites"], text["streams"], text["connection"]) == (2, 2, "mhc")
    assert isinstance(copy.deepcopy(model).config.mhc_compile, Note)
    mhc.remove(model)
    assert not vars(model.config)


def test_a_model_that_was_loaded_without_its_sites() -> None:
    model = configured()
    mhc.upgrade(model, (inputs(),))
    naive = configured()
    naive.config.mhc_compile = json.loads(json.dumps(model.config.mhc_compile))
    for call in (lambda: mhc.upgrade(naive, (inputs(),)), lambda: compiled(naive)(inputs())):
        with pytest.raises(NotRestoredError, match=r"saved with 2 hyper-connections, but loaded without them.*"
                           r"mhc_compile\.from_pretrained\(Net, folder\).*del model\.config\.mhc_compile"):  # fmt: skip
            call()
        assert not any("mhc" in name for name in naive.state_dict())
    mhc.restore(naive, model.state_dict())
    assert isinstance(naive.config.mhc_compile, Note)


def test_models_that_share_a_config() -> None:
    first, second = configured(), configured()
    second.config = first.config
    mhc.upgrade(first, (inputs(),), verify=False)
    config_note.check(second)


def test_other_models_have_no_note() -> None:
    model: Any = made()
    model.config = {"a": 1}
    config_note.write(model, ModelPlan(mhc.Config(), ()))
    assert model.config == {"a": 1}
    config_note.erase(made())
    config_note.check(made())
