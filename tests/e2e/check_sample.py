"""Gate over `make demo`: what the sample world must show. Exit code 1 with what does not hold.

    python tests/e2e/check_sample.py WORKSPACE

Finetuned is above pretrained on both benchmarks and above BM25 on their paraphrase queries, and the shipped reranker
above what it is given, each outside the 95 % interval of the paired bootstrap; no leaked training query or gold
positive is kept; the four ways to a vector agree, and both trained heads in FlagEmbedding; written queries went all the
way into training, and jobs/why.py tells the story of one. What refining, merging and the hybrid gain is printed, not
gated: their budgets here are a minute of training.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "platform"))

from chuxin.artifacts import Artifact  # noqa: E402  (the package is found by the line above)


def artifact(workspace: Path, stage: str) -> Artifact:
    """The newest committed artifact of a stage."""
    found = [Artifact(str(path.parent)) for path in workspace.glob(f"{stage}-*/manifest.json")]
    return max(found, key=lambda one: one.manifest["started"])


def manifest(workspace: Path, stage: str) -> dict:
    """Reads a stage's manifest."""
    return artifact(workspace, stage).manifest


def gain(part: dict, system: str, baseline: str) -> dict:
    """The paired difference of nDCG@10 between two systems in one slice of a task."""
    return next(d["ndcg_at_10"] for d in part["differences"] if (d["system"], d["baseline"]) == (system, baseline))


def told(task: str, kind: str, part: dict, system: str, baseline: str) -> bool:
    """Prints a gain; returns whether its interval is above 0."""
    difference = gain(part, system, baseline)
    print(f"{task} {kind}: {system} − {baseline} {100 * difference['mean']:+.1f} "
          f"({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})")
    return difference["low"] > 0


def written_queries(workspace: Path) -> list[str]:
    """Returns what does not hold of the written queries; prints how many came how far."""
    counts = {stage: manifest(workspace, stage) for stage in ("synthesize", "judge")}
    selected = manifest(workspace, "select")["facts"]["by_source"]
    kept = sum(own.get("keep", 0) for source, own in selected.items() if source.startswith("synthetic-"))
    queries = counts["synthesize"]["facts"]["llm"]["queries_kept"]
    print(f"written queries: {queries} parsed, {counts['judge']['rows_out']} accepted, {kept} kept by select")
    if not 0 < kept < counts["judge"]["rows_out"] <= queries:
        return ["written queries do not reach training, or nothing falls on the way"]
    plan = artifact(workspace, "pack_refine").read("plan", ["query_id", "source", "batch"]).to_pylist()
    steps = manifest(workspace, "refine")["facts"]["steps"]
    used = [row["query_id"] for row in plan if row["source"].startswith("synthetic-") and row["batch"] < steps]
    if not used:
        return ["no written query was used by refine"]
    query_id = used[0]
    arguments = ["--config", ROOT / "jobs/configs/sample/recipe.yaml", "--workspace", workspace]
    done = subprocess.run([sys.executable, ROOT / "jobs/why.py", str(query_id), *arguments], text=True,
                          capture_output=True, check=False)  # fmt: skip
    print(done.stdout + done.stderr)
    wanted = (r"document \d+: source", r"passage \d+, \d+ characters", r"written by \S+, prompt \w{16}",
              r"criterion standalone, prompt", r"(?m)^ +rerank +\d+ candidates",
              r"(?m)^ +refine +steps? \d")  # fmt: skip
    missing = [f"why.py does not tell {part}" for part in wanted if not re.search(part, done.stdout)]
    return missing + [f"why.py ended with {done.returncode}"] * bool(done.returncode)


def failures(workspace: Path) -> list[str]:
    """Returns what does not hold."""
    found = []
    results = json.loads(Path(artifact(workspace, "evaluate").path("results.json")).read_text(encoding="utf-8"))
    for task, entry in results["tasks"].items():
        for kind, baseline in (("all", "pretrained"), ("paraphrase", "BM25")):
            if not told(task, kind, entry["slices"][kind], "finetuned", baseline):
                found.append(f"{task} {kind}: finetuned is not above {baseline}")
        if not told(task, "all", entry["slices"]["all"], "reranked", "merged"):
            found.append(f"{task}: the reranker does not help")
        for system, baseline in (("refined", "finetuned"), ("merged", "finetuned"), ("merged-hybrid", "merged")):
            told(task, "all", entry["slices"]["all"], system, baseline)
    found += written_queries(workspace)
    curated = manifest(workspace, "curate")["facts"]
    planted = json.loads(Path(artifact(workspace, "sample").path("planted.json")).read_text(encoding="utf-8"))["counts"]
    leaks = {name: sum(curated[name].values()) for name in ("contaminated_query", "contaminated_positive")}
    queries = sum(count for name, count in planted.items() if name.startswith("query_"))
    print(f"leaks found and dropped: {leaks}; planted: {queries} queries, {planted['gold_pair']} positives")
    if leaks["contaminated_query"] < queries or leaks["contaminated_positive"] < planted["gold_pair"]:
        found.append("a planted leak was not found")
    facts = {**manifest(workspace, "release")["facts"], **manifest(workspace, "serve")["facts"]}
    cosines = {name: value for name, value in facts.items() if "cosine" in name}
    print(f"least cosines with the training checkpoint: {cosines}")
    if len(cosines) < 3 or min(cosines.values()) < 0.9999:
        found.append("the checkpoint, the release in both libraries and the endpoint do not agree")
    heads = {name: value for name, value in facts.items() if name.startswith("greatest_difference_")}
    print(f"greatest differences of the heads in FlagEmbedding: {heads}")
    if not facts["heads_trained"] or len(heads) < 2 or max(heads.values()) > 1e-4:
        found.append("the release does not carry the trained heads")
    return found


if __name__ == "__main__":
    wrong = failures(Path(sys.argv[1]))
    print("\n".join(wrong) or "all of it holds")
    sys.exit(bool(wrong))
