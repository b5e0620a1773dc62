"""The same start, the same pairs, the same number of examples: our finetuning beside FlagEmbedding's own trainer.

    DATA=folder python tests/benchmarks/compare_real.py [--examples 15360 --batch-size 64]

Takes the real world's pairs and pretrained model (what `make demo-real` committed, or commits it now), packs them
in small batches (FlagEmbedding trains about ten examples a second here: with the recipe's 256 a batch, a run that
ends within the hour has too few steps to leave the loss of chance), trains ours on the first batches of the plan,
hands the very same pairs to FlagEmbedding's encoder-only trainer (one source a batch, same batch size, lengths,
temperature, learning rate, warm-up and linear decay), evaluates both on the same benchmarks, prints both rows and
writes results/compare_real.json. Leaves out: hard negatives, which FlagEmbedding cannot take where a query has none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "platform"))

from chuxin import runner, story  # noqa: E402
from chuxin.artifacts import Artifact  # noqa: E402
from chuxin.commands import load_recipe  # noqa: E402
from chuxin.config import ModelRef  # noqa: E402
from chuxin.errors import InputError  # noqa: E402
from chuxin.files import open_parquet  # noqa: E402
from chuxin.recipe import STAGES, RecipeConfig  # noqa: E402


def artifacts_of(recipe: RecipeConfig, last: str) -> dict[str, Artifact]:
    """Runs the recipe up to a stage; committed work is skipped."""
    made: dict[str, Artifact] = {}
    for bound in runner.bind(recipe, STAGES):
        made[bound.stage.name] = runner.run_here(bound, recipe)
        print(f"{bound.stage.name:14} {made[bound.stage.name].uri}", flush=True)
        if bound.stage.name == last:
            break
    return made


def export_pairs(plan: Artifact, groups: Artifact, batches: int, target: Path) -> int:
    """Writes the plan's first batches as FlagEmbedding's JSON lines, one file a source; returns the rows."""
    table = groups.read("groups", ["query_id", "query", "positives"])
    texts = dict(zip(table["query_id"].to_pylist(),
                     zip(table["query"].to_pylist(), table["positives"].to_pylist(), strict=True), strict=True))
    rows, seen = 0, 0
    files: dict[str, Any] = {}
    for part in plan.parts("plan"):
        found = open_parquet(part).read(columns=["batch", "source", "query_id", "passages"]).to_pylist()
        for row in found:
            if seen + row["batch"] >= batches:
                break
            query, positives = texts[row["query_id"]]
            chosen = next(p["text"] for p in positives if p["passage_id"] == row["passages"][0]["passage_id"])
            if row["source"] not in files:
                files[row["source"]] = open(target / f"{row['source']}.jsonl", "w", encoding="utf-8")
            line = {"query": query, "pos": [chosen], "neg": [], "prompt": ""}
            print(json.dumps(line, ensure_ascii=False), file=files[row["source"]])
            rows += 1
        seen += 1 + max(row["batch"] for row in found)
        if seen >= batches:
            break
    for file in files.values():
        file.close()
    written = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in target.glob("*.jsonl"))
    if written != rows:
        raise RuntimeError(f"{rows} pairs were taken from the plan and {written} stand in {target}")
    return rows


def without_dropout(model: str, target: Path) -> str:
    """Copies a model with its config's dropout at 0, as ours trains: FlagEmbedding takes it from the config."""
    shutil.copytree(model, target)
    config = json.loads((target / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (target / "config.json").write_text(json.dumps(config))
    return str(target)


def train_flagembedding(start: str, data: Path, output: Path, recipe: RecipeConfig, steps: int, threads: int) -> float:
    """Trains with FlagEmbedding's own trainer on the CPU; returns the seconds of its training loop's process."""
    pack, tune = recipe.pack_finetune, recipe.finetune
    command = [
        sys.executable, "-m", "FlagEmbedding.finetune.embedder.encoder_only.base",
        "--model_name_or_path", start, "--train_data", str(data), "--output_dir", str(output),
        "--train_group_size", "1", "--query_max_len", str(pack.query_max_len),
        "--passage_max_len", str(pack.passage_max_len), "--same_dataset_within_batch", "True",
        "--query_instruction_for_retrieval", "", "--per_device_train_batch_size", str(pack.batch_size),
        "--temperature", str(tune.temperature), "--learning_rate", str(tune.optimizer.learning_rate),
        "--warmup_steps", str(tune.optimizer.warmup_steps), "--max_steps", str(steps),
        "--num_train_epochs", "1", "--lr_scheduler_type", "linear", "--seed", str(tune.seed),
        "--sentence_pooling_method", "cls", "--normalize_embeddings", "True", "--logging_steps", "10",
        "--use_cpu", "True", "--bf16", str(tune.dtype == "bf16"), "--save_strategy", "no", "--report_to", "none",
        "--dataloader_drop_last", "False",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    began = time.time()
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    return time.time() - began


def main() -> int:
    """Trains both, evaluates both, prints and writes the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="jobs/configs/real/recipe.yaml")
    parser.add_argument("--workspace")
    parser.add_argument("--examples", type=int, default=15360, help="training examples of each side")
    parser.add_argument("--batch-size", type=int, default=64)
    known = parser.parse_args()
    try:
        recipe = load_recipe(known.config, known.workspace)
        if recipe.pack_finetune.group_size != 1:
            raise InputError(known.config, "pack_finetune.group_size is not 1", "FlagEmbedding has no ragged negatives")
        steps = known.examples // known.batch_size
        optimizer = dataclasses.replace(recipe.finetune.optimizer, warmup_steps=steps // 10)
        recipe = dataclasses.replace(
            recipe, pack_finetune=dataclasses.replace(recipe.pack_finetune, batch_size=known.batch_size),
            finetune=dataclasses.replace(recipe.finetune, max_steps=steps, optimizer=optimizer),
        )  # fmt: skip
        return compare(recipe, steps)
    except Exception as error:
        return runner.fail(error)


def compare(recipe: RecipeConfig, steps: int) -> int:
    """Runs both sides in one Ray session and reports."""
    base = Path(recipe.workspace) / "compare"
    shutil.rmtree(base, ignore_errors=True)
    (base / "pairs").mkdir(parents=True)
    with runner.session(recipe.execution.num_cpus, dashboard=False):
        ours = artifacts_of(recipe, "finetune")
        rows = export_pairs(ours["pack_finetune"], ours["curate"], steps, base / "pairs")
        threads = recipe.finetune.execution.cpus_per_worker
        start = without_dropout(ours["pretrain"].path("model"), base / "start")
        seconds = train_flagembedding(start, base / "pairs", base / "flagembedding", recipe, steps, threads)
        models = {"start": ModelRef("pretrain"), "Chuxin": ModelRef("finetune"),
                  "FlagEmbedding": ModelRef(str(base / "flagembedding"))}
        both = dataclasses.replace(recipe, evaluate=dataclasses.replace(recipe.evaluate, models=models))
        evaluated = artifacts_of(both, "evaluate")["evaluate"]
    results = json.loads(Path(evaluated.path("results.json")).read_text())
    mine = ours["finetune"].manifest
    report = {
        "name": "compare_real", "examples": rows, "steps": steps, "machine": story.machine(),
        "date": time.strftime("%Y-%m-%d"), "seconds": {"ours": mine["seconds"], "theirs": round(seconds, 1)},
        "examples_per_s": {"ours": round(rows / mine["seconds"], 1), "theirs": round(rows / seconds, 1)},
        "ndcg_at_10": {task: {system: round(100 * score["ndcg_at_10"]["mean"], 1)
                              for system, score in entry["slices"]["all"]["scores"].items()}
                       for task, entry in results["tasks"].items()},
    }
    target = Path(__file__).parent / "results" / "compare_real.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    systems = results["systems"]
    print("\n" + f"{'nDCG@10':24}" + "".join(f"{s:>16}" for s in systems))
    for task, scores in report["ndcg_at_10"].items():
        print(f"{task:24}" + "".join(f"{scores[s]:16.1f}" for s in systems))
    speed = report["examples_per_s"]
    print(f"{'examples/s, all told':24}{'':32}{speed['ours']:16}{speed['theirs']:16}")
    print(json.dumps(report, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
