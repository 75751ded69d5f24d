"""The page is one file that needs nothing else; a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import mhc_compile as mhc
from mhc_compile import cli
from mhc_compile.cli.report import page, runs
from tests.mhc_compile.cli.report.logs import look, write
from tests.nets.small import Net, inputs, upgraded

vl_convert = pytest.importorskip("vl_convert")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def specs(html: str) -> dict[str, dict[str, object]]:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', html, re.DOTALL)
    assert found
    read: dict[str, dict[str, object]] = json.loads(found[1])
    return read


def test_a_page_is_made_of_what_the_monitor_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = upgraded(Net, 2)
    with mhc.Monitor(model, every=1, to=tmp_path / "a") as monitor:
        for loss in (torch.tensor(2.0), torch.tensor(float("nan"))):
            monitor.step(loss, None, (inputs(),))
    out = tmp_path / "pages" / "report.html"
    assert cli.main(["report", str(tmp_path / "a"), "-o", str(out)]) == 0
    assert "wrote" in capsys.readouterr().out
    html = out.read_text("utf-8")
    assert set(specs(html)) == {"loss", "composite-gain", "gain-by-site", "spread", "matrices-0"}  # no gradients yet
    assert "blocks.1.mlp" in html
    assert "no-skip" in html or "Not rewritten" not in html
    assert "the loss is not a finite number at step 1: a gap in the plot" in html


@pytest.mark.slow
def test_a_run_of_48_sites_stays_below_5_mb_and_asks_for_nothing(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, [look(count=48)] * 20) for name in "ab"]  # more looks than are shown
    html = page.made(runs.load(folders))
    assert len(html.encode()) < 5e6
    own = html.replace(vl_convert.javascript_bundle().replace("</script", "<\\/script"), "")
    assert not re.search(r"(src|href)=(?![\"']?data:)", own)
    assert "default-src 'none'" in own
    assert own.count("<script") == own.count("</script>") == 3
    assert "Net</script>" not in own


def test_runs_without_looks_still_make_a_page(tmp_path: Path) -> None:
    html = page.made(runs.load([write(tmp_path, [{"loss": 1.0}])]))
    assert set(specs(html)) == {"loss"}
    assert "nothing was written of this" in html
    assert "no gains were measured" in html


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "x.html")]) == 2
    assert capsys.readouterr().err.startswith("mhc_compile: ")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1360])
def test_chromium_draws_every_chart_and_complains_of_nothing(width: int, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text(page.made(runs.load([write(tmp_path, [look(count=12), look(float("nan"), count=12)])])), "utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        f"--window-size={width},900", "--virtual-time-budget=20000", out.as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert 'data-drawn="yes"' in ran.stdout
    assert len(re.findall(r"<svg[^>]+class=\"marks\"", ran.stdout)) == 6
    assert "CONSOLE" not in ran.stderr
