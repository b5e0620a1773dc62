"""The story of a run, told from the manifests: what the report and the closing table show.

Leaves out: how it looks (report/).
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from chuxin.artifacts import Artifact
from chuxin.config import to_plain
from chuxin.report.summary import Contamination, StageRow, Summary


def summarise(recipe: Any, done: Sequence[tuple[Artifact, bool]]) -> Summary:
    """Builds the summary of a run.

    Args:
        recipe: The recipe's resolved config.
        done: The artifacts in the recipe's order, each with whether this run found it committed.
    """
    manifests = [artifact.manifest for artifact, _ in done]
    rows = tuple(
        StageRow(m["stage"], m["seconds"], m["rows_in"], m["rows_out"], m["drops"], "skipped" if skipped else "ran",
                 m["fingerprint"], m["histograms"], m["facts"])
        for m, (_, skipped) in zip(manifests, done, strict=True)
    )
    losses = {a.manifest["stage"]: _losses(a) for a, _ in done if _holds(a, "metrics.jsonl")}
    results = next((a.path("results.json") for a, _ in done if _holds(a, "results.json")), None)
    return Summary(
        name=recipe.name,
        created=time.strftime("%Y-%m-%d %H:%M"),
        machine=machine(),
        versions=manifests[-1]["versions"] if manifests else {},
        stages=rows,
        losses=losses,
        contamination=tuple(leak for m in manifests if m["stage"] == "curate" for leak in _leaks(m)),
        evaluation=json.loads(Path(results).read_text(encoding="utf-8")) if results else {},
        config_yaml=yaml.safe_dump(to_plain(recipe), allow_unicode=True, sort_keys=False),
    )


def _leaks(manifest: dict[str, Any]) -> list[Contamination]:
    """What curate found of the benchmarks in the training data; nothing if it was given no benchmarks."""
    facts, config = manifest["facts"], manifest["config"]
    if not config["benchmarks"]:
        return []
    kinds = ("contaminated_query", "contaminated_positive", "gold_documents")
    found = {kind: sum(facts.get(kind, {}).values()) for kind in kinds}
    raw = found["gold_documents"] if config["drop_gold_from_raw"] else 0
    return [
        Contamination("training queries equal to a benchmark query", found["contaminated_query"],
                      found["contaminated_query"]),
        Contamination("training positives equal to a benchmark's gold passage", found["contaminated_positive"],
                      found["contaminated_positive"]),
        Contamination("raw documents that hold a gold passage", found["gold_documents"], raw),
    ]


def machine() -> str:
    """Names the processor, the cores and the memory of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        processor = ""  # not Linux: the architecture below has to do
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def _holds(artifact: Artifact, name: str) -> bool:
    return any(name in partition["files"] for partition in artifact.partitions())


def _losses(artifact: Artifact) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of the loss, of its terms and of dev scores, by name, the loss first."""
    lines = Path(artifact.path("metrics.jsonl")).read_text(encoding="utf-8").splitlines()
    found: dict[str, list[tuple[int, float]]] = {"loss": []}
    for record in map(json.loads, lines):
        for name, value in record.items():
            if name in ("loss", "dev_ndcg_at_10") or name.endswith("_loss"):
                found.setdefault(name, []).append((record["step"], value))
    return found
