"""What runs say of their models, as HTML tables; every text of theirs is escaped."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mhc_compile.api.gains.result import DEAD
from mhc_compile.api.gains.tables import number
from mhc_compile.api.report import short
from mhc_compile.cli.report.runs import Run, finite, worst
from mhc_compile.plan.memory import readable


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: int = 0) -> str:
    """Return a table that scrolls where it is too wide; the last `numbers` columns are numbers."""

    def row(kind: str, cells: Sequence[Any]) -> str:
        first = len(head) - numbers
        made = (f"<{kind}{' class=number' if i >= first else ''}>{text(cell)}</{kind}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return f'<div class="scroll"><table><thead>{row("th", head)}</thead><tbody>{body}</tbody></table></div>'


def text(value: Any) -> str:
    """Return a value as HTML text."""
    return html.escape("–" if value is None else str(value))


def overview(runs: Sequence[Run]) -> str:
    """Return a row for each run: what it was, and how it ended."""
    head = ("run", "model", "connection", "streams", "steps", "last loss", "largest composite gain", "sites apart")
    return table(head, [_overview(run) for run in runs], numbers=5)


def _overview(run: Run) -> Sequence[Any]:
    config, sites = run.model.get("config", {}), run.last
    losses = [record["loss"] for record in run.steps if "loss" in record]
    ways = ("composite_forward", "composite_backward")
    gains = [worst(value for way in ways for value in look["sites"][way]) for look in run.looks]
    known = [gain for gain in gains if gain is not None]
    alive = sum(1 for value in sites.get("spread", ()) if (finite(value) or 0) > DEAD)
    return (
        run.name,
        run.model.get("name"),
        config.get("connection"),
        config.get("streams"),
        run.steps[-1]["step"] + 1 if run.steps else 0,
        f"{losses[-1]:.4f}" if losses else None,
        number(max(known)) if known else None,
        f"{alive} of {len(sites['spread'])}" if sites else None,
    )


def sites(run: Run) -> str:
    """Return the last look at every site."""
    last = run.last
    head = (
        "site", "region", "gain forward", "backward", "to the end: forward", "backward", "column error", "from I",
        "spread", "dominance", "H_pre", "H_post",
    )  # fmt: skip
    rows = []
    for i, name in enumerate(last.get("name", ())):
        gains = [number(last[way][i]) for way in ("forward", "backward", "composite_forward", "composite_backward")]
        error = last["column_error"][i]
        rows.append(
            (
                name,
                last["region"][i],
                *gains,
                None if error is None else f"{error:.1e}",
                f"{last['from_identity'][i]:.3f}",
                f"{last['spread'][i]:.1e}",
                f"{last['dominance'][i]:.3f}",
                *(" ".join(f"{value:.2f}" for value in last[part][i]) for part in ("h_pre", "h_post")),
            )
        )
    return table(head, rows, numbers=10)


def model_map(run: Run) -> str:
    """Return what was found in the model, what was lifted, and what was rejected and why."""
    found = run.model.get("map", {})
    if "error" in found or not found:
        return f"<p>There is no map of this model: {text(found.get('error', 'no look was taken'))}</p>"
    head = ("site", "kind", "region", "place", "shape", "lifted on the way", "source")
    rows = [
        (
            site["name"],
            site["kind"],
            site["region"],
            f"{site['k'] + 1} of {site['length']}",
            "×".join(map(str, site["shape"])),
            ", ".join(site["lifts"]) or None,
            short(site["source"]),
        )
        for site in found["sites"]
    ]
    counted = Counter((r["reason"], r["residual"], r["message"]) for r in found["rejections"])
    rejected = [(reason, "yes" if residual else "no", times, why) for (reason, residual, why), times in counted.items()]
    parts = [table(head, rows)]
    if rejected:
        parts += ["<h4>Not rewritten</h4>", table(("reason", "residual", "adds", "why"), rejected)]
    if found["cuts"]:
        cuts = [(cut["name"], cut["kind"], "yes" if cut["carries"] else "no", cut["reason"]) for cut in found["cuts"]]
        parts += ["<h4>Cut between graphs</h4>", table(("what", "kind", "carries", "broken by"), cuts)]
    return "".join(parts)


def setup(run: Run) -> str:
    """Return parameters, memory plan, kernels, options and versions."""
    model, rows = run.model, list[tuple[str, Any]]()
    found = model.get("map", {})
    if "parameters" in found:
        own = model["parameters"] - found["parameters"]
        share = f"{found['parameters']:,} of mHC on top of {own:,} ({found['parameters'] / max(1, own):.2%})"
        memory = found["memory"]
        rows.append(("parameters", share))
        rows.append(("streams kept for backward", f"{readable(memory['kept'])} (recompute={memory['recompute']!r})"))
        rows.append(("at the peak", readable(memory["peak"])))
        rows.append(("if every site kept its streams", readable(memory["without"])))
        rows.append(("before the rewrite", readable(memory["before_rewrite"])))
        rows.append(
            ("blocks", ", ".join(f"{len(r['sites'])} sites in blocks of {r['size'] or 1}" for r in memory["runs"]))
        )
    for each in model.get("kernels", ()):
        language = f"generated, in {each['language']}" if each["language"] else f"none: {each['why_not']}"
        rows.append((f"kernels on {each['device']}, {each['dtype'].removeprefix('torch.')}", language))
    rows += [(name, value) for name, value in model.get("config", {}).items() if value not in ([], None)]
    rows += list(model.get("versions", {}).items())
    return table(("", ""), rows) if rows else "<p>Nothing was written of this model.</p>"
