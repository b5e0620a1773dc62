"""Mining hard negatives on one CPU thread in fp32: chuxin's mine stage against FlagEmbedding's hn_mine script.

Both read passages and groups from files, encode all, search exactly and write what they found; CPU time counts from
after the imports and the model's load, encoding included, in a process of its own. The wheel lacks hn_mine, and faiss
is not among our packages: `published` does what the script does, with FlagEmbedding's encoder at its own batch size,
and an exact matrix product in place of IndexFlatIP. `ratio` is for the larger corpus.
`bytes_per_passage` is the slope of the highest RssAnon between the two sizes: memory that no file backs; freed
memory goes back to the system at once on both sides (malloc maps every block above 64 KiB by itself). Equal means:
for every query and rank the scores of both are within 5e-4 (ours are of float16 vectors).
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {
    "passages": [20_000, 100_000], "queries": 500, "characters": [10, 200], "keep": 210, "negatives": 15,
    "max_length": 128, "batch_size": 256, "batch_tokens": 2048, "vocabulary": 4000, "layers": 2, "hidden": 128,
    "heads": 4, "dtype": "float32", "threads": 1, "seed": 3,
}  # fmt: skip


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    """A folder that goes when this process ends."""
    return tempfile.TemporaryDirectory(prefix="bench-mine-")


def texts(count: int, low: int, high: int, seed: int) -> list[str]:
    """Random Han texts, their lengths uniform on a logarithmic scale."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(int)
    return ["".join(map(chr, rng.integers(0x4E00, 0x4E00 + 1500, n))) for n in lengths]


def write_inputs() -> str:
    """Writes the model, and passages and groups in the formats of both sides."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from chuxin.ids import text_hash
    from chuxin.models.checkpoint import save_model
    from chuxin.models.config import InitConfig
    from chuxin.models.start import new_model, train_tokenizer
    from chuxin.schema import GROUPS, PASSAGES

    path = Path(folder().name)
    passages = texts(max(SETTINGS["passages"]), *SETTINGS["characters"], SETTINGS["seed"])
    queries = texts(SETTINGS["queries"], 4, 16, SETTINGS["seed"] + 1)
    tokenizer = train_tokenizer(passages[:5000], vocab_size=SETTINGS["vocabulary"], max_len=SETTINGS["max_length"])
    config = InitConfig(seed=SETTINGS["seed"], passages="none", max_texts=1, vocab_size=SETTINGS["vocabulary"],
                        layers=SETTINGS["layers"], hidden=SETTINGS["hidden"], heads=SETTINGS["heads"],
                        intermediate=4 * SETTINGS["hidden"], max_len=SETTINGS["max_length"])  # fmt: skip
    save_model(new_model(config, len(tokenizer)), tokenizer, str(path / "model"))
    rows = [{"query_id": i, "query": query, "query_hash": text_hash(query), "source": "s", "status": "keep",
             "negatives": [], "lineage": None,
             "positives": [{"passage_id": i, "text": passages[i], "text_hash": text_hash(passages[i]), "score": None}]}
            for i, query in enumerate(queries)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, GROUPS), path / "groups.parquet")
    groups = [{"query": query, "pos": [passages[i]], "neg": []} for i, query in enumerate(queries)]
    _write_lines(path / "groups.jsonl", groups)
    for count in SETTINGS["passages"]:
        own = passages[:count]
        table = {"passage_id": range(count), "text": own, "text_hash": list(map(text_hash, own)),
                 "status": ["keep"] * count}  # fmt: skip
        rest = {f.name: pa.nulls(count, f.type) for f in PASSAGES if f.name not in table}
        pq.write_table(pa.table({**{k: pa.array(v) for k, v in table.items()}, **rest}).select(PASSAGES.names),
                       path / f"passages-{count}.parquet", row_group_size=8192)  # fmt: skip
        _write_lines(path / f"passages-{count}.jsonl", [{"text": text} for text in own])
    return str(path)


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def ours(path: str, count: int) -> list[list[float]]:
    """Runs the mine stage's partitions one after another; returns each query's scores."""
    import in_process  # beside this file, which runs as a script of its own

    from chuxin.mining import pipeline
    from chuxin.mining.config import MineConfig, MineExecution

    config = MineConfig(
        groups=(f"{path}/groups.parquet",), passages=f"{path}/passages-{count}.parquet", model=f"{path}/model",
        query_max_len=SETTINGS["max_length"], passage_max_len=SETTINGS["max_length"], keep=SETTINGS["keep"],
        miners=("dense",), execution=MineExecution(batch_tokens=SETTINGS["batch_tokens"]),
    )  # fmt: skip

    def work() -> list[list[float]]:
        with tempfile.TemporaryDirectory(dir=path) as target:
            mined = in_process.run(pipeline.mine, config, f"{target}/mine")
            rows = mined.read("candidates", ["candidates"])["candidates"].to_pylist()
        ranked = [sorted((c for c in row if c["dense_rank"]), key=lambda c: c["dense_rank"]) for row in rows]
        return [[c["dense"] for c in row] for row in ranked]

    return work


def published(path: str, count: int) -> Any:
    """What find_knn_neg does; returns each query's scores."""
    import random

    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(f"{path}/model", use_fp16=False, devices=["cpu"], batch_size=SETTINGS["batch_size"],
                           query_max_length=SETTINGS["max_length"], passage_max_length=SETTINGS["max_length"],
                           return_sparse=False, return_colbert_vecs=False)  # fmt: skip

    def work() -> list[list[float]]:
        train = [json.loads(line) for line in open(f"{path}/groups.jsonl", encoding="utf-8")]
        corpus = [json.loads(line.strip())["text"] for line in open(f"{path}/passages-{count}.jsonl", encoding="utf-8")]
        corpus = list(dict.fromkeys(corpus))  # the script: list(set(…)), in an order that no run repeats
        queries = [row["query"] for row in train]
        passage_vectors = model.encode(corpus)["dense_vecs"]
        query_vectors = model.encode_queries(queries)["dense_vecs"]
        index = np.ascontiguousarray(passage_vectors).astype(np.float32)  # IndexFlatIP.add copies them
        scores, places = [], []
        for start in range(0, len(queries), 64):
            block = query_vectors[start : start + 64].astype(np.float32) @ index.T
            top = np.argpartition(-block, SETTINGS["keep"] - 1, axis=1)[:, : SETTINGS["keep"]]
            order = np.argsort(-np.take_along_axis(block, top, axis=1), axis=1)
            places += np.take_along_axis(top, order, axis=1).tolist()
            scores += np.take_along_axis(block, np.take_along_axis(top, order, axis=1), axis=1).tolist()
        for row, found in zip(train, places, strict=True):
            names = [corpus[i] for i in found[10:] if corpus[i] not in row["pos"] and corpus[i] != row["query"]]
            row["neg"] = random.sample(names, min(len(names), SETTINGS["negatives"]))
        with open(f"{path}/mined.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in train)
        return scores

    return work


def child(side: str, path: str, count: int) -> None:
    """Runs one side in this process; writes scores, CPU seconds and the highest RssAnon."""
    import torch

    torch.set_num_threads(SETTINGS["threads"])
    work = {"ours": ours, "theirs": published}[side](path, count)
    highest, done = 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.05):
            highest = max(highest, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.process_time()
    scores = work()
    seconds = time.process_time() - started
    done.set()
    watcher.join()
    np.save(f"{path}/{side}-{count}.npy", np.array(scores, np.float32))
    print(json.dumps({"seconds": seconds, "bytes": highest}), flush=True)


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(rounds: int) -> dict[str, Any]:
    """Runs both sides at both sizes, the larger one so many times."""
    path = write_inputs()
    small, large = SETTINGS["passages"]
    memory = {(side, small): _run(side, path, small)["bytes"] for side in ("ours", "theirs")}
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds):
        for side in ("ours", "theirs")[:: 1 if turn % 2 == 0 else -1]:
            done = _run(side, path, large)
            times[side].append(done["seconds"])
            memory[side, large] = done["bytes"]
    slope = {side: (memory[side, large] - memory[side, small]) / (large - small) for side in times}
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    same = [np.abs(np.load(f"{path}/ours-{n}.npy") - np.load(f"{path}/theirs-{n}.npy")).max() for n in (small, large)]
    return {
        "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "ours": statistics.median(times["ours"]), "theirs": statistics.median(times["theirs"]), "unit": "CPU seconds",
        "equal": bool(max(same) < 5e-4), "largest_difference": float(max(same)), "rounds": rounds,
        "bytes_per_passage": {"ratio": slope["ours"] / slope["theirs"], **slope}, "settings": SETTINGS,
    }  # fmt: skip


def _run(side: str, path: str, count: int) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "platform"),
                   "OMP_NUM_THREADS": str(SETTINGS["threads"]), "TOKENIZERS_PARALLELISM": "false",
                   "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # fmt: skip
    command = [sys.executable, __file__, side, path, str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} at {count} passages failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], int(sys.argv[3]))
