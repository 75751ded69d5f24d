"""The callback of Lightning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mhc_compile as mhc
from mhc_compile.api.monitor import lightning
from mhc_compile.api.monitor.run_log import FILE, read
from mhc_compile.errors import MissingDependencyError
from tests.nets.small import Net, inputs, upgraded


@pytest.mark.slow
def test_a_trainer_is_monitored(tmp_path: Path) -> None:
    pl: Any = pytest.importorskip("lightning.pytorch")
    net = upgraded(Net, 2)
    net.compile(backend="mhc", options={"compiler": "eager"})

    class Module(pl.LightningModule):  # type: ignore[misc]  # a class that is imported here
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(mhc.param_groups(self.net, lr=1e-2))

    examples: Any = [inputs(1, 5, seed=i)[0] for i in range(8)]
    data: Any = torch.utils.data.DataLoader(examples, batch_size=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    monitor = mhc.Monitor(net, every=2, to=tmp_path)
    pl.Trainer(max_steps=4, callbacks=[monitor.lightning()], **quiet).fit(Module(), data)
    steps = [record for record in read(tmp_path / FILE)[0] if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [0, 2]
    assert all(record["loss"] > 0 and record["sites"]["name"] for record in steps)


def test_batches_that_are_accumulated_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Lightning: what the callback does with what it is given."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "lightning")
    monkeypatch.setattr("importlib.import_module", lambda name: SimpleNamespace(Callback=object))
    seen: list[Any] = []
    callback = lightning.callback(SimpleNamespace(step=lambda *given: seen.append(given)))
    for at, batch in enumerate("abcd"):
        trainer = SimpleNamespace(global_step=(at + 1) // 2, optimizers=["optimizer"])
        callback.on_train_batch_end(trainer, None, {"loss": at}, batch, at)
    assert seen == [(1, "optimizer", "b"), (3, "optimizer", "d")]


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install lightning"):
        lightning.callback(None)
