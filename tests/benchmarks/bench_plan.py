"""Tokens a second of one loader process: from a plan on disk, as the pack stage writes it, to arrays ready for packing.

There is no peer: the ratio is the measured speed over a million tokens a second, by CPU time. Read are the batches of
one worker (all slices), in this thread, without reading ahead: everything a loader does is counted. Equal means: rows,
tokens and a checksum over ids and positions of every batch are those of the plan before it was written.
"""

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SETTINGS = {
    "batches": 24, "batch_size": 64, "group_size": 8, "slices": 64, "query_tokens": 16,
    "passage_tokens": "log-normal, median 220, sigma 0.8, capped at 512", "vocabulary": 250_002, "files": 2, "seed": 3,
}  # fmt: skip

Sums = list[tuple[int, int, int]]
"""Of each batch: rows, tokens, checksum."""


def measure(rounds: int) -> dict[str, Any]:
    """Reads the whole plan once before the clock, then `rounds` times.

    Returns:
        What run.py prints; `ours` and `theirs` are millions of tokens a CPU second, measured and asked for.
    """
    plan, written = made()
    from chuxin.training.plan_reader import read_batches

    same = sums(prepared(batch) for batch in read_batches(plan, 0, 1, 1, plan.batches)) == written
    tokens = sum(count for _, count, _ in written)
    speeds, walls = [], []
    for _ in range(rounds):
        cpu, wall = time.process_time(), time.perf_counter()
        for batch in read_batches(plan, 0, 1, 1, plan.batches):
            prepared(batch)
        speeds.append(tokens / (time.process_time() - cpu) / 1e6)
        walls.append(tokens / (time.perf_counter() - wall) / 1e6)
    return {
        "name": "plan", "ratio": statistics.median(speeds), "ratio_min": min(speeds), "ratio_max": max(speeds),
        "ours": statistics.median(speeds), "theirs": 1.0, "unit": "million tokens a CPU second", "equal": same,
        "rounds": rounds, "settings": {**SETTINGS, "tokens": tokens}, "wall": {"ours": statistics.median(walls)},
    }  # fmt: skip


def prepared(batch: Any) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """What a contrastive objective takes from a batch: texts (queries first), each row's passages, hashes of texts."""
    from chuxin.training.plan_reader import token_lists

    passages = pc.list_flatten(batch.table["passages"])
    texts = token_lists(batch.table["query_ids"]) + token_lists(pc.struct_field(passages, "token_ids"))
    counts = pc.list_value_length(batch.table["passages"]).to_numpy()
    return texts, counts, batch.table["query_hash"].to_numpy(), pc.struct_field(passages, "text_hash").to_numpy()


def sums(batches: Iterator[tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]]) -> Sums:
    return [(len(counts), sum(map(len, texts)), sum(map(weighted, texts))) for texts, counts, _, _ in batches]


def weighted(ids: np.ndarray) -> int:
    return int((ids.astype(np.int64) * np.arange(1, len(ids) + 1)).sum())


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    """A folder that goes when this process ends."""
    return tempfile.TemporaryDirectory(prefix="bench-plan-")


@functools.cache
def made() -> tuple[Any, Sums]:
    """Plans random groups and writes them; returns the opened plan and its sums before it was written."""
    from chuxin.artifacts import Draft
    from chuxin.packing.plan import plan_groups
    from chuxin.packing.tokens import as_groups
    from chuxin.packing.write import Figures, group_slices
    from chuxin.schema import PLAN_GROUPS
    from chuxin.training.plan_reader import open_plan

    draw = np.random.default_rng(SETTINGS["seed"])
    draft = Draft(f"{folder().name}/plan", "f" * 32, {}, print)
    written: Sums = []
    for file in range(SETTINGS["files"]):
        table = token_table(draw, SETTINGS["batches"] // SETTINGS["files"] * SETTINGS["batch_size"])
        groups = as_groups(table, {})
        sizes = {name: SETTINGS[name] for name in ("group_size", "batch_size")}
        plan = plan_groups(groups, **sizes, seed=1, epoch=0, bucket=file)
        columns = (table[name].to_pylist() for name in ("query_ids", "positives", "negatives"))
        rows = [[query, *(p["token_ids"] for p in (*positive, *negatives))]
                for query, positive, negatives in zip(*columns, strict=True)]  # fmt: skip
        for batch in plan.batches:
            texts = [np.array(ids) for group in batch.group_R for ids in rows[group]]
            written.append((len(batch.group_R), sum(map(len, texts)), sum(map(weighted, texts))))
        with draft.attempt(f"epoch000-bucket{file:04d}") as attempt:
            figures = Figures()
            parts = group_slices(table, plan.batches, 0, SETTINGS["slices"])
            attempt.write("plan", figures.watch(parts), PLAN_GROUPS)
            facts = {"slices": SETTINGS["slices"], "vocabulary": "random"}
            attempt.count(facts={**figures.facts(len(plan.batches)), **facts})
    artifact = draft.close()
    return open_plan(artifact.uri, artifact.partitions(), artifact.parts("plan")), written


def token_table(draw: np.random.Generator, rows: int) -> pa.Table:
    """Groups of one source with random ids; every group has `group_size` - 1 negatives."""
    from chuxin.packing.tokens import PASSAGES_TYPE, TOKEN_GROUPS

    def lists(lengths: np.ndarray) -> pa.ListArray:
        # A Zipf law, as words have: uniform ids would be harder to compress than any text.
        ids = draw.zipf(1.1, int(lengths.sum())) % (SETTINGS["vocabulary"] - 4) + 4
        return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), pa.array(ids, pa.int32()))

    def passages(each: int) -> pa.ListArray:
        count = rows * each
        ids = pa.array(draw.integers(0, 1 << 62, count))
        lengths = np.clip(draw.lognormal(np.log(220), 0.8, count), 8, 512).astype(int)
        fields = [ids, ids, lists(lengths), pa.array(draw.random(count, np.float32))]
        flat = pa.StructArray.from_arrays(fields, fields=list(PASSAGES_TYPE.value_type))
        return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * each, pa.int32()), flat)

    return pa.table({
        "bucket": pa.array(np.zeros(rows, np.int32)), "query_id": draw.integers(0, 1 << 62, rows),
        "query_hash": draw.integers(0, 1 << 62, rows), "source": pa.array(["a"] * rows),
        "query_ids": lists(np.full(rows, SETTINGS["query_tokens"])),
        "positives": passages(1), "negatives": passages(SETTINGS["group_size"] - 1),
    }, schema=TOKEN_GROUPS)  # fmt: skip


if __name__ == "__main__":
    print(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
