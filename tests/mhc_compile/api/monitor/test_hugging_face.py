"""The callback of Hugging Face's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mhc_compile as mhc
from mhc_compile.api.monitor import hugging_face
from mhc_compile.api.monitor.hugging_face import first_batch
from mhc_compile.api.monitor.run_log import FILE, read
from mhc_compile.errors import MissingDependencyError
from tests.nets.small import Net, inputs


class Examples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        torch.rand(())  # as an augmentation draws
        return {"x": inputs(1, 5, seed=index)[0]}


class WithLoss(nn.Module):
    """What the Trainer calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.net(x).square().mean()}


def test_the_first_examples_are_the_probe_and_nothing_is_drawn() -> None:
    loader = torch.utils.data.DataLoader(Examples(), batch_size=4, shuffle=True)
    state = torch.get_rng_state()
    batch = first_batch(loader, torch.device("cpu"))
    assert torch.equal(batch["x"], torch.cat([inputs(1, 5, seed=index) for index in range(4)]))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.warns(mhc.MHCWarning, match="probe=batch"):
        assert first_batch(None, torch.device("cpu")) is None


@pytest.mark.slow
def test_a_trainer_is_monitored(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    transformers: Any = pytest.importorskip("transformers")
    model = WithLoss()
    mhc.upgrade(model, (), {"x": inputs()})
    model.compile(backend="mhc", options={"compiler": "eager"})
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=5, logging_steps=2, report_to=[], save_strategy="no", use_cpu=True
    )
    monitor = mhc.Monitor(model, every=2, to=tmp_path)
    callbacks = [monitor.hugging_face()]
    transformers.Trainer(model=model, args=arguments, train_dataset=Examples(), callbacks=callbacks).train()
    steps = [record for record in read(tmp_path / FILE)[0] if record["kind"] == "step"]
    assert [record["step"] for record in steps if "sites" in record] == [0, 2, 4]
    assert [record["step"] for record in steps if "loss" in record] == [2, 4]
    assert all(record["grad_norm"]["mhc"] > 0 for record in steps if "sites" in record)


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install transformers"):
        hugging_face.callback(None)
