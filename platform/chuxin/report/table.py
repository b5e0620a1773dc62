"""The table that ends a run in the terminal: rows, drops by reason and seconds by stage, then scores by
task.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chuxin.report.comparisons import comparisons, gain
from chuxin.report.summary import StageRow, Summary


def text_table(summary: Summary) -> str:
    """Returns the end-of-run table, aligned also where names are Chinese."""
    tables = [_stages(summary.stages)]
    if summary.evaluation:
        tables += [_scores(summary.evaluation), _gains(summary.evaluation)]
    return "\n\n".join(table for table in tables if table)


def width(text: str) -> int:
    """Returns the columns a text takes in a terminal: 2 for East Asian wide characters, 0 for combining
    ones.
    """
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def align(rows: Sequence[Sequence[str]], sides: str) -> str:
    """Returns rows as lines with aligned columns; `sides` has a letter a column, l for flush left, r for
    right.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for cell, size, side in zip(row, widths, sides, strict=True):
            gap = " " * (size - width(cell))
            cells.append(cell + gap if side == "l" else gap + cell)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _stages(stages: Sequence[StageRow]) -> str:
    rows = [("stage", "", "rows in", "rows out", "dropped", "share", "seconds")]
    for stage in stages:
        counts = (f"{stage.rows_in:,}", f"{stage.rows_out:,}", f"{stage.dropped:,}")
        share = _share(stage.dropped, stage)
        rows.append((stage.name, stage.status, *counts, share, f"{stage.seconds:,.1f}"))
        for reason, count in sorted(stage.drops.items(), key=lambda item: (-item[1], item[0])):
            if count:
                rows.append((f"  {reason}", "", "", "", f"{count:,}", _share(count, stage), ""))
    ran = sum(stage.seconds for stage in stages if stage.status == "ran")
    rows.append(("this run", "", "", "", "", "", f"{ran:,.1f}"))
    return align(rows, "llrrrrr")


def _share(count: int, stage: StageRow) -> str:
    return f"{100 * count / stage.handled:.1f} %" if count else ""


def _scores(results: Mapping[str, Any]) -> str:
    rows = [("task", "queries", "n", "system", "nDCG@10", "95 % interval", "recall@100")]
    for task, kind, part in _slices(results):
        labels = (task, kind, f"{part['n']:,}")
        for system in results["systems"]:
            ndcg, recall = (part["scores"][system][metric] for metric in ("ndcg_at_10", "recall_at_100"))
            interval = f"{100 * ndcg['low']:.1f} to {100 * ndcg['high']:.1f}"
            means = (f"{100 * ndcg['mean']:.1f}", f"{100 * recall['mean']:.1f}")
            rows.append((*labels, system, means[0], interval, means[1]))
            labels = ("", "", "")
    return align(rows, "llrlrrr")


def _gains(results: Mapping[str, Any]) -> str:
    """The leading system against each other one; over all queries also what is made from one against that one."""
    rows = []
    for task, kind, part in _slices(results):
        labels = (task, kind)
        for system, baseline in comparisons(results):
            if system in results["bases"] and not task:  # a task's first slice holds all queries
                continue
            found = gain(part, system, baseline)
            interval = f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
            verdict = "" if found["significant"] else "not significant"
            rows.append((*labels, f"{system} − {baseline}", f"{100 * found['mean']:+.1f}", interval, verdict))
            labels = ("", "")
    header = ("task", "queries", "gain", "nDCG@10", "95 % interval", "")
    return align([header, *rows], "lllrrl") if rows else ""


def _slices(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for task, entry in results["tasks"].items():
        label = task
        for kind, part in entry["slices"].items():
            yield label, kind, part
            label = ""
