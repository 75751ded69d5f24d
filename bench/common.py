"""What the benchmarks share: the model, the table and the place of the results."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.table import Table

from mhc_compile.cli import bench, measure

RESULTS = Path(__file__).parent / "results"
_PATCH = 16  # pixels


def vit(hidden: int, layers: int, length: int) -> torch.nn.Module:
    """A vision transformer on square pictures of about so many patches."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 4,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        image_size=_side(length),
        patch_size=_PATCH,
    )
    model: torch.nn.Module = transformers.ViTForImageClassification(config)
    return model


def images(batch: int, length: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Keyword arguments of one training step of `vit`, noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, _side(length), _side(length), generator=generator).to(device)
    return {"pixel_values": pixels, "labels": torch.zeros(batch, dtype=torch.long, device=device)}


def _side(length: int) -> int:
    return _PATCH * max(1, round(math.sqrt(length)))


def tokens(batch: int, length: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Keyword arguments of one training step, random bytes."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(256, (batch, length), generator=generator).to(device)
    return {"input_ids": ids, "labels": ids}


def show(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], width: int = 0) -> None:
    """Print a table, so many columns wide where the output is piped; the first column names the row."""
    table = Table(title=title)
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console = bench.console()
    if width and not console.is_terminal:
        console.width = width
    console.print(table)


def place(name: str, device: str, folder: Path = RESULTS) -> Path:
    """Return the path FOLDER/NAME-DEVICE.json, where `save` writes."""
    slug = re.sub(r"[^a-z0-9]+", "-", measure.device_name(device).lower()).strip("-")
    return folder / f"{name}-{slug}.json"


def save(name: str, device: str, arguments: Mapping[str, Any], rows: object, folder: Path = RESULTS) -> Path:
    """Write FOLDER/NAME-DEVICE.json with versions and hardware, and say so."""
    payload = {"environment": measure.environment(device), "arguments": arguments, "rows": rows}
    path = measure.write_json(place(name, device, folder), payload)
    print(f"wrote {path}")
    return path
