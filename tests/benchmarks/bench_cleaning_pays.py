"""What cleaning is worth: the same start refined for the same number of steps on differently made groups.

    WORKSPACE=folder python tests/benchmarks/run.py cleaning_pays --rounds 5         (--rounds: the number of seeds)
    REAL_WORKSPACE=folder DATA=folder python tests/benchmarks/run.py cleaning_pays --rounds 5

The sample world: `WORKSPACE` is a finished `make demo`. Six arms: `none`, the curated groups; `uncleaned`, these and
every query that the LLM wrote, rejected ones too, with its passage, each with as many negatives as the recipe's,
drawn as the recipe draws them from as many ranks, whatever they are: of the first ten by either miner, mined at this
file's lengths; `cleaned`, the groups as the recipe's select stage made them (rules, judge, round trip, reranker,
relabel), their negatives of the ten that the reranker scores. `uncleaned_hardest` and `cleaned_hardest` take, of the
same candidates, those of the highest score (dense; the reranker's). `uncleaned_far` draws from the published ranks
(20 to 200, here 100: no more are kept), where few are false.

The real world: labelled pairs, nothing written. `REAL_WORKSPACE` is a `make demo-real` of the folder `DATA`, finished
as far as finetune. `none`: the pairs alone; `uncleaned`: with mined negatives; `cleaned`: likewise,
without those that a cross-encoder finds too good, and without positives that it finds bad. No cross-encoder for such
text is at hand, so one is trained first, from the same start, on other pairs with mined negatives of far ranks. Its
scores have no zero of their own: the bound of both is a quantile of the labelled positives' scores.

Each arm is packed and refined once a seed (which draws rows, batches and negatives) and scored by the dense output.
`ratio` is nDCG@10 of cleaned over uncleaned on all queries of the sample's benchmarks, both with the hardest negatives,
where false ones tell; `difference` (and `by_recipe`, of the arms drawn as the recipe draws) has the 95 % interval over
resampled queries, each resample's differences averaged over resampled seeds too. Equal means: every training of a world
began with the same weights and took the same steps (one that cannot raises), on as many rows as the others to within
10 %: a plan's batches are full but for the last. Each world has its date and its seeds; of a world whose folders are
not given the last record is kept.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import in_process  # noqa: E402  (beside this file, wherever it is run from)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "training"))
from engines import PlainEngine  # noqa: E402  (the unit tests train without DeepSpeed too)

RECORD = Path(__file__).resolve().parent / "results" / "cleaning_pays.json"
SETTINGS = {
    "group_size": 4, "batch_size": 32, "temperature": 0.03, "micro_batch_tokens": 4096, "threads": 1, "dtype": "fp32",
    "bootstrap_samples": 2000, "bootstrap_seed": 1, "seed": 7,
    "sample": {"steps": 200, "learning_rate": 1e-3, "warmup_steps": 20, "query_max_len": 32, "passage_max_len": 96,
               "evaluated_passage_len": 128, "far_ranks": [20, 200]},
    "real": {
        "steps": 50, "learning_rate": 2e-4, "warmup_steps": 5, "query_max_len": 32, "passage_max_len": 128,
        "evaluated_passage_len": 192, "tasks": ["CMRC2018-dev", "NCPPolicies-answer", "DRCD-test"], "max_queries": 1000,
        "pool": 12000, "mined": 1600, "ranks": [3, 30], "negatives": 7,
        "reranker": {"groups": 2400, "ranks": [50, 100], "batch_size": 16, "steps": 150, "learning_rate": 2e-4,
                     "warmup_steps": 15},
        "quantile": 0.1,
    },
}  # fmt: skip


class World(NamedTuple):
    """What the arms of a world have in common."""

    sizes: Mapping[str, Any]
    """Its part of SETTINGS."""
    start: str
    """The model that every training begins with."""
    groups: Mapping[str, str]
    """Artifact or file with the table `groups`, by arm."""
    tasks: Mapping[str, str]
    """Benchmark folders by name."""


def made(workspace: str, last: str) -> dict[str, Any]:
    """Returns the newest artifact of a stage and all that it was made from, by stage.

    Raises:
        InputError: The workspace has none, or an artifact that it was made from is gone.
    """
    from chuxin.artifacts import Artifact
    from chuxin.errors import InputError
    from chuxin.lineage import ancestry

    found = [Artifact(str(file.parent)) for file in Path(workspace).glob(f"{last}-*/manifest.json")]
    if not found:
        raise InputError(workspace, f"no finished `{last}` stands here", "Run the recipe to its end in this workspace")
    behind = ancestry([max(found, key=lambda artifact: artifact.manifest["started"])])
    if behind.gone:
        raise InputError(workspace, f"{next(iter(behind.gone.values()))} is gone", "Run the recipe to its end again")
    return {artifact.manifest["stage"]: artifact for artifact in behind.artifacts}


def sample_world(workspace: str, folder: str) -> World:
    """Takes the recipe's groups and makes those of the uncleaned arm."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from chuxin.config import validate
    from chuxin.mining import pipeline
    from chuxin.mining.config import MineConfig, SelectConfig
    from chuxin.runner import Context
    from chuxin.schema import GROUPS

    artifacts = made(workspace, "select")
    config = validate(MineConfig, artifacts["mine"].manifest["config"], str)
    start = Context("cleaning_pays", None, artifacts, print).resolve(config.model)
    rows = list(written_groups(artifacts["synthesize"].read("synthetic").to_pylist()))
    print(f"sample: {len(rows)} queries were written, {artifacts['judge'].read('groups', ['query_id']).num_rows} kept")
    pq.write_table(pa.Table.from_pylist(rows, GROUPS), f"{folder}/written.parquet")
    select = validate(SelectConfig, artifacts["select"].manifest["config"], str)
    rule, sizes = select.negatives, SETTINGS["sample"]
    groups = (artifacts["curate"].uri, f"{folder}/written.parquet")
    # The recipe scores its best candidates alone, and takes no negative without a score: the same ranks, uncleaned.
    scored = artifacts["rerank"].manifest["config"]["top_k"] or config.keep
    ranks = (rule.first_rank, min(rule.last_rank, config.keep, scored))
    mined = mined_candidates(folder, groups, artifacts["curate"].uri, start, sizes, config.keep, config.miners)
    far = (sizes["far_ranks"][0], min(sizes["far_ranks"][1], config.keep))
    hardest = replace(select, candidates=artifacts[select.candidates].uri, store=artifacts["mine"].uri,
                      negatives=replace(rule, draw="hardest"))  # fmt: skip
    tables = {
        "none": artifacts["curate"].uri, "uncleaned": uncleaned(folder, mined, ranks, rule.most, rule.draw),
        "uncleaned_hardest": uncleaned(folder, mined, ranks, rule.most, "hardest"),
        "uncleaned_far": uncleaned(folder, mined, far, rule.most), "cleaned": artifacts["select"].uri,
        "cleaned_hardest": in_process.run(pipeline.select, hardest, f"{tempfile.mkdtemp(dir=folder)}/select").uri,
    }  # fmt: skip
    benchmarks = Path(artifacts["sample"].path("benchmarks"))
    return World(SETTINGS["sample"], start, tables, {path.name: str(path) for path in sorted(benchmarks.iterdir())})


def written_groups(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields a group for every query that an LLM wrote, as the judge makes them of those it keeps."""
    from chuxin.schema import KEEP
    from chuxin.synthesis.judge import accepted, query_id

    seen: set[int] = set()
    for row in rows:
        verdicts = [
            {"query_id": query_id(row["passage_id"], row["prompt_hash"], row["model"], written["seed"], index),
             "query": written["query"], "reason": KEEP}
            for index, written in enumerate(row["queries"] or ()) if written["query"]
        ]  # fmt: skip
        for group in accepted(row, verdicts):
            if group["query_id"] not in seen:
                seen.add(group["query_id"])
                yield group


def mined_candidates(
    folder: str, groups: tuple[str, ...], passages: str, model: str, sizes: Mapping[str, Any], keep: int,
    miners: tuple[str, ...] = ("dense",),
) -> str:  # fmt: skip
    """Mines candidates; returns the artifact."""
    from chuxin.mining import pipeline
    from chuxin.mining.config import MineConfig, MineExecution

    config = MineConfig(
        groups, passages, model, sizes["query_max_len"], sizes["passage_max_len"], keep, miners,
        shard_passages=100_000, execution=MineExecution(batch_tokens=SETTINGS["micro_batch_tokens"]),
    )  # fmt: skip
    return in_process.run(pipeline.mine, config, f"{tempfile.mkdtemp(dir=folder)}/mine").uri


def uncleaned(folder: str, mined: str, ranks: tuple[int, int], most: int, draw: str = "random") -> str:
    """Takes candidates of these ranks for negatives, whatever they are; returns the artifact of the groups."""
    from chuxin.mining import pipeline
    from chuxin.mining.config import NegativeRule, PositiveRule, SelectConfig

    negatives = NegativeRule(*ranks, below=None, relative_margin=None, most=most, draw=draw)
    chosen = SelectConfig(
        mined, mined, SETTINGS["seed"], score="dense", positives=PositiveRule(mined=False, above=None),
        negatives=negatives, min_negatives=0,
    )  # fmt: skip
    return in_process.run(pipeline.select, chosen, f"{tempfile.mkdtemp(dir=folder)}/select").uri


def real_world(workspace: str, data: str, folder: str) -> World:
    """Draws labelled pairs, mines negatives for them, trains a cross-encoder and cleans them with it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from chuxin.mining import pipeline
    from chuxin.mining.config import NegativeRule, PositiveRule, RerankConfig, RerankExecution, SelectConfig
    from chuxin.schema import GROUPS, PASSAGES

    sizes = SETTINGS["real"]
    artifacts = made(workspace, "finetune")
    start = artifacts["finetune"].path("model")
    weights = artifacts["pack_finetune"].manifest["config"]["weights"]
    pool = drawn(artifacts["curate"].read("groups"), weights, sizes["pool"])
    passages = {p["text_hash"]: p for row in pool for p in row["positives"] + row["negatives"]}
    rest = dict.fromkeys(PASSAGES.names) | {"status": "keep"}
    pq.write_table(pa.Table.from_pylist([
        rest | {name: p[name] for name in ("passage_id", "text", "text_hash")} for p in passages.values()
    ], PASSAGES), f"{folder}/passages.parquet")  # fmt: skip
    others = sizes["reranker"]["groups"]
    for name, rows in (("taught", pool[:others]), ("pairs", pool[others : others + sizes["mined"]])):
        os.mkdir(f"{folder}/{name}")
        pq.write_table(pa.Table.from_pylist(rows, GROUPS), f"{folder}/{name}/groups.parquet")
    mined = mined_candidates(folder, (f"{folder}/taught",), f"{folder}/passages.parquet", start, sizes,
                             sizes["reranker"]["ranks"][1])  # fmt: skip
    taught = uncleaned(folder, mined, sizes["reranker"]["ranks"], sizes["negatives"])
    reranker = train(folder, taught, start, sizes | sizes["reranker"], SETTINGS["seed"], reranking=True)[0]
    keep, most = sizes["ranks"][1], sizes["negatives"]
    mine = mined_candidates(folder, (f"{folder}/pairs",), f"{folder}/passages.parquet", start, sizes, keep)
    scored = in_process.run(pipeline.rerank, RerankConfig(
        mine, mine, reranker, sizes["query_max_len"], sizes["passage_max_len"],
        execution=RerankExecution(batch_tokens=SETTINGS["micro_batch_tokens"]),
    ), f"{folder}/rerank").uri  # fmt: skip
    bound = own_quantile(scored, sizes["quantile"])
    cleaned = in_process.run(pipeline.select, SelectConfig(
        scored, mine, SETTINGS["seed"], positives=PositiveRule(mined=False, above=bound),
        negatives=NegativeRule(*sizes["ranks"], below=bound, relative_margin=None, most=most, false_positives=False),
        min_negatives=0,
    ), f"{folder}/select").uri  # fmt: skip
    tables = {"none": f"{folder}/pairs", "uncleaned": uncleaned(folder, mine, sizes["ranks"], most), "cleaned": cleaned}
    return World(sizes, start, tables, {task: f"{data}/benchmarks/{task}" for task in sizes["tasks"]})


def drawn(groups: Any, weights: Mapping[str, float], count: int) -> list[dict[str, Any]]:
    """Draws groups to keep without repetition, each source by its weight."""
    import pyarrow.compute as pc

    kept = groups.filter(pc.equal(groups["status"], "keep"))
    weight = np.array([weights.get(source, 1.0) for source in kept["source"].to_pylist()])
    places = np.random.default_rng(SETTINGS["seed"]).choice(len(kept), count, replace=False, p=weight / weight.sum())
    return kept.take(places).to_pylist()


def own_quantile(scored: str, share: float) -> float:
    """Returns the score that so many of the groups' own positives do not reach; tells how the others score."""
    from chuxin.artifacts import Artifact

    candidates = Artifact(scored).read("candidates", ["candidates"])["candidates"].combine_chunks().flatten()
    scores, own = candidates.field("rerank").to_numpy(zero_copy_only=False), candidates.field("given").to_numpy(False)
    bound = float(np.nanquantile(scores[own], share))
    reached = np.nanmean(scores[~own] >= bound)
    print(f"real: {share:.0%} of the labelled positives score under {bound:.2f}, {1 - reached:.0%} of the others")
    return bound


def train(
    folder: str, groups: str, start: str, sizes: Mapping[str, Any], seed: int, reranking: bool = False
) -> tuple[str, int]:
    """Packs groups and trains on them; returns the model's directory and the rows trained on."""
    import torch

    from chuxin.packing.config import PackGroupsConfig
    from chuxin.packing.pipeline import pack_groups
    from chuxin.training import assembly
    from chuxin.training.config import FinetuneConfig, OptimizerConfig, RerankerConfig, TrainExecution
    from chuxin.training.guard import Guard
    from chuxin.training.loop import Watched
    from chuxin.training.loop import train as steps_of
    from chuxin.training.optimizer import new_optimizer
    from chuxin.training.plan_reader import open_plan

    # Mixed batches: of one source each, the arms' last batches would be short by different numbers of rows.
    steps, batch_size = sizes["steps"], sizes.get("batch_size", SETTINGS["batch_size"])
    target = tempfile.mkdtemp(dir=folder)
    for epochs in (1, 2, 4, 8, 16, 32):
        packed = in_process.run(pack_groups, PackGroupsConfig(
            groups, start, sizes["query_max_len"], sizes["passage_max_len"], SETTINGS["group_size"],
            min_negatives=int(reranking), batch_size=batch_size, epochs=epochs, seed=seed, slices=1,
            max_groups=2 * steps * batch_size, batches="mixed",
        ), f"{target}/plan-{epochs}", _silent)  # fmt: skip
        plan = open_plan(packed.uri, packed.partitions(), packed.parts("plan"))
        if plan.batches >= steps:
            break
    common = {
        "plan": packed.uri, "model": start, "seed": seed, "dtype": SETTINGS["dtype"], "max_steps": steps,
        "optimizer": OptimizerConfig(sizes["learning_rate"], sizes["warmup_steps"]),
        "execution": TrainExecution(micro_batch_tokens=SETTINGS["micro_batch_tokens"]),
    }  # fmt: skip
    config = RerankerConfig(**common) if reranking else FinetuneConfig(**common, temperature=SETTINGS["temperature"])
    device = torch.device("cpu")
    loaded = assembly.assemble(config, start, plan, packed.uri, None, device)
    engine = PlainEngine(loaded.module, new_optimizer(loaded.module, config.optimizer))
    objective = assembly.new_objective(config, loaded, engine, plan)
    watched = Watched(Guard(config.max_loss_ratio))
    records = list(steps_of(engine, objective, plan, config, 0, steps, watched))
    if len(records) < steps:
        raise RuntimeError(f"{groups}: its plan has {len(records)} batches, and {steps} steps are asked for")
    assembly.export(loaded, f"{target}/model")
    first, last = (np.mean([r["loss"] for r in part]) for part in (records[:10], records[-10:]))
    print(f"{steps} steps, loss {first:.3f} to {last:.3f}, {sum(r['seconds'] for r in records):.0f} s", flush=True)
    return f"{target}/model", sum(record["rows"] for record in records)


def _silent(line: str) -> None:
    """Packing says nothing here that the training does not."""


def scores(model: str, world: World) -> dict[str, np.ndarray]:
    """nDCG@10 of every query, float32 [Q], by benchmark."""
    from chuxin.evaluation.config import EvaluateConfig, EvaluateExecution
    from chuxin.evaluation.rankings import by_model
    from chuxin.evaluation.tasks import load_task
    from chuxin.search.metrics import score

    config = EvaluateConfig(
        {"refined": model}, dict(world.tasks), world.sizes["query_max_len"], world.sizes["evaluated_passage_len"],
        SETTINGS["seed"], execution=EvaluateExecution(batch_tokens=SETTINGS["micro_batch_tokens"]),
    )  # fmt: skip
    found = {}
    for task, folder in world.tasks.items():
        benchmark = load_task(folder, world.sizes.get("max_queries"), SETTINGS["seed"])
        index_QK = by_model(model, benchmark, config, ("dense",))["dense"]
        found[task] = score(benchmark.qrels, benchmark.query_ids, benchmark.corpus_ids, index_QK)["ndcg_at_10"]
    return found


def run_arm(world: World, folder: str, work: tuple[int, str]) -> tuple[dict[str, np.ndarray], int]:
    """Trains one arm with one seed; returns its scores and the rows trained on."""
    import torch

    torch.set_num_threads(SETTINGS["threads"])
    seed, arm = work
    model, rows = train(folder, world.groups[arm], world.start, world.sizes, seed)
    return scores(model, world), rows


def compared(world: World, seeds: int, folder: str) -> dict[str, Any]:
    """Trains and scores every arm with every seed, a process of one thread each, as many at once as there are cores."""
    found: dict[str, list[dict[str, np.ndarray]]] = {arm: [] for arm in world.groups}
    rows: dict[str, list[int]] = {arm: [] for arm in world.groups}
    work = [(seed, arm) for seed in range(1, seeds + 1) for arm in world.groups]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for (seed, arm), (own, trained) in zip(work, pool.map(partial(run_arm, world, folder), work), strict=True):
            found[arm].append(own)
            rows[arm].append(trained)
            means = ", ".join(f"{task} {100 * values.mean():.1f}" for task, values in own.items())
            print(f"seed {seed}, {arm}: {means}", flush=True)
    values = {arm: {task: np.stack([one[task] for one in runs]) for task in world.tasks} for arm, runs in found.items()}
    for by_task in values.values():
        by_task["all"] = np.concatenate(list(by_task.values()), axis=1)
    return {
        "start": {task: float(value.mean()) for task, value in scores(world.start, world).items()},
        "ndcg_at_10": {arm: {task: float(v.mean()) for task, v in by_task.items()} for arm, by_task in values.items()},
        "by_seed": {arm: by_task["all"].mean(axis=1).round(4).tolist() for arm, by_task in values.items()},
        **{
            f"{name}_minus": {
                arm: {task: difference(values[name][task] - other) for task, other in values[arm].items()}
                for arm in values if arm != name
            }
            for name in values if name.startswith("cleaned")
        },
        "queries": values["cleaned"]["all"].shape[1], "rows": rows,
        "equal": max(map(max, rows.values())) <= 1.1 * min(map(min, rows.values())),
    }  # fmt: skip


def difference(values_SQ: np.ndarray) -> dict[str, float | bool]:
    """A paired difference with its 95 % interval: queries are drawn anew, and with each draw the seeds too."""
    from chuxin.evaluation.significance import interval, is_significant, resample_means

    samples, seeds = SETTINGS["bootstrap_samples"], len(values_SQ)
    means_BS = resample_means(values_SQ.T, samples, SETTINGS["bootstrap_seed"])
    picks_BS = np.random.default_rng(SETTINGS["bootstrap_seed"]).integers(0, seeds, means_BS.shape)
    found = interval(values_SQ.mean(axis=0), np.take_along_axis(means_BS, picks_BS, axis=1).mean(axis=1))
    return {**found._asdict(), "significant": is_significant(found, values_SQ.shape[1])}


WORLDS = {"sample": (sample_world, "WORKSPACE"), "real": (real_world, "REAL_WORKSPACE", "DATA")}
"""How a world is made, and the environment's variables that name its folders."""


def measure(rounds: int) -> dict[str, Any]:
    """Compares the arms of the worlds whose folders are given, with so many seeds."""
    import torch

    from chuxin.errors import InputError

    given = {name: [os.environ[key] for key in keys]
             for name, (_, *keys) in WORLDS.items() if os.environ.keys() >= {*keys}}  # fmt: skip
    # Hours of two cores: a world that is not measured now stays as it was.
    worlds = json.loads(RECORD.read_text(encoding="utf-8"))["worlds"] if RECORD.exists() else {}
    if not given or "sample" not in given.keys() | worlds.keys():
        raise InputError("WORKSPACE", "it is not set", "Set it to the folder of a finished `make demo` (or, once "
                         "that is on record, REAL_WORKSPACE and DATA for the real world alone)")
    torch.set_num_threads(SETTINGS["threads"])
    with tempfile.TemporaryDirectory(prefix="bench-cleaning-") as folder:
        for name, folders in given.items():
            started = time.perf_counter()
            os.mkdir(target := f"{folder}/{name}")
            found = compared(WORLDS[name][0](*folders, target), rounds, target)
            worlds[name] = {**found, "date": datetime.date.today().isoformat(),
                            "seconds": round(time.perf_counter() - started)}  # fmt: skip
    sample = worlds["sample"]
    ours, theirs = (sample["ndcg_at_10"][arm]["all"] for arm in ("cleaned_hardest", "uncleaned_hardest"))
    return {
        "ratio": ours / theirs, "ours": ours, "theirs": theirs, "unit": "nDCG@10 of the sample's benchmarks",
        "difference": sample["cleaned_hardest_minus"]["uncleaned_hardest"]["all"],
        "by_recipe": sample["cleaned_minus"]["uncleaned"]["all"],
        "equal": all(world["equal"] for world in worlds.values()), "rounds": len(sample["by_seed"]["cleaned"]),
        "settings": SETTINGS, "worlds": worlds,
    }  # fmt: skip
