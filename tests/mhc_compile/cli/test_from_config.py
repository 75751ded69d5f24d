"""from_config: a model of transformers by its config alone, and what is said of one that cannot be built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mhc_compile import cli
from mhc_compile.cli import from_config
from mhc_compile.errors import FactoryError

transformers = pytest.importorskip("transformers")
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


def written(folder: Path, **config: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return f"hf:{path}"


def test_explain_takes_no_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of more parameters than this machine holds."""
    large = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 3, "num_attention_heads": 128}
    target = written(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"], **large)
    assert cli.main(["explain", target, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sites"]) == 6


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "vit", "image_size": 32, "patch_size": 16, **SMALL}, "ViTModel"),
        ({"model_type": "t5", "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 1,
          "architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration"),
    ],
    ids=["images", "encoder and decoder"],
)  # fmt: skip
def test_it_runs_with_its_inputs(config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    model, args, kwargs = from_config.load(written(tmp_path, **config), "cpu")
    assert type(model).__name__ == kind
    model(*args, **kwargs)
    assert from_config.load(f"hf:{tmp_path}", "meta")[2].keys() == kwargs.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "unheard-of"}', "says model_type 'unheard-of', which transformers .* does not know"),
        ('["llama"]', "says model_type None"),
        ("{", "is no JSON"),
        ('{"model_type": "whisper", "num_mel_bins": 8}', "takes input_features, of a shape that its config does not"),
        ('{"model_type": "clip_text_model", "architectures": ["Nothing"]}', None),
    ],
    ids=["unknown", "a list", "torn", "audio", "bare"],
)
def test_what_is_said(text: str, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    if said is None:
        assert from_config.load(f"hf:{tmp_path}", "meta")[0] is not None
        return
    with pytest.raises(FactoryError, match=said):
        from_config.load(f"hf:{tmp_path}", "meta")


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", f"hf:{tmp_path}/none.json"]) == 2
    assert "there is no file" in capsys.readouterr().err
