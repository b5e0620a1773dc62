"""The largest batch that GradCache trains in the memory a plain step takes, for the dense vector and for three heads.

A plain step on a batch of 16 queries x 4 passages sets the limit: its peak memory, the process whole, with the
embedding table and its gradient (256 MB each) on both sides, and a second gradient where more than one micro-batch
adds to it. GradCache then runs multiples of that batch, the largest first, each in a process of its own, until one
stays below; `ratio` is that multiple for the dense vector, and `three_heads` has that of the unified loss with
self-distillation. The first multiple tried is what the time allows and not a limit of memory. Freed memory goes back
to the system at once on both sides (malloc maps every block above 64 KiB by itself). Equal means: on the plain step's
batch the loss and every gradient, element by element, are within 1e-4, for both kinds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import contrastive  # noqa: E402  (beside this file)

SETTINGS = {
    "queries": 16, "group_size": 4, "query_tokens": 16, "passage_tokens": 64, "multiples": [12, 8, 4],
    "vocabulary": contrastive.VOCABULARY, "layers": 12, "hidden": 256, "heads": 4, "micro_batch_tokens": 256,
    "temperature": 0.02, "dropout": 0.0, "dtype": "float32", "threads": 1, "seed": 3,
    "memory": "peak resident set of the process, embedding table and its gradient (256 MB each) included",
}  # fmt: skip
HEADS = {"dense": {"heads": "dense"}, "three_heads": {"heads": "all", "self_distill_from": 1}}


def batch(multiple: int):
    """So many times the plain step's batch."""
    rng = np.random.default_rng(SETTINGS["seed"])
    words = rng.choice(np.arange(4, SETTINGS["vocabulary"]), 500, replace=False)
    queries, group = SETTINGS["queries"] * multiple, range(SETTINGS["group_size"])
    sizes = SETTINGS["query_tokens"], SETTINGS["passage_tokens"]
    drawn = [[contrastive.drawn_ids(rng, sizes[place > 0], words) for place in range(1 + len(group))]
             for _ in range(queries)]  # fmt: skip
    return contrastive.new_batch([texts[0] for texts in drawn], [texts[1:] for texts in drawn])


def model():
    import torch

    torch.set_num_threads(SETTINGS["threads"])
    sizes = (SETTINGS["hidden"], SETTINGS["layers"], SETTINGS["heads"], SETTINGS["passage_tokens"])
    return contrastive.new_model(*sizes, SETTINGS["seed"])


def objective(module, heads: str, grad_cache: bool):
    """A plain step runs all texts at once."""
    budget = SETTINGS["micro_batch_tokens"] if grad_cache else 10**9
    return contrastive.new_objective(module, budget, grad_cache, temperature=SETTINGS["temperature"], **HEADS[heads])


def peak_bytes(heads: str, grad_cache: bool, multiple: int) -> int:
    """Runs one step in a process of its own and returns its peak memory."""
    environment = {
        **os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "platform"),
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # fmt: skip
    command = [sys.executable, __file__, heads, str(int(grad_cache)), str(multiple)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def largest(heads: str) -> dict:
    """Returns the limit and the largest multiple that stays below it."""
    limit, peaks, best = peak_bytes(heads, False, 1), {}, 0
    for multiple in SETTINGS["multiples"]:
        peaks[multiple] = peak_bytes(heads, True, multiple)
        if peaks[multiple] <= limit:
            best = multiple
            break
    return {"ratio": best, "limit_bytes": limit, "grad_cache_bytes": peaks}


def same(heads: str) -> bool:
    """Whether both steps give the same on the plain step's batch."""
    module = model()
    return contrastive.close(
        contrastive.step(module, objective(module, heads, False), batch(1)),
        contrastive.step(module, objective(module, heads, True), batch(1)),
    )


def measure(rounds: int) -> dict:
    """Memory does not vary from run to run as time does: one round, whatever is asked for."""
    equal = all(same(heads) for heads in HEADS)
    dense, three = (largest(heads) for heads in HEADS)
    queries = SETTINGS["queries"]
    return {
        "ratio": dense["ratio"], "ratio_min": dense["ratio"], "ratio_max": dense["ratio"],
        "ours": queries * dense["ratio"], "theirs": queries, "unit": "queries a batch", "equal": equal, "rounds": 1,
        "three_heads": three, "dense": dense, "settings": SETTINGS,
    }  # fmt: skip


def main(heads: str, grad_cache: str, multiple: str) -> None:
    """Runs one step and prints this process's peak memory in bytes."""
    module = model()
    contrastive.step(module, objective(module, heads, bool(int(grad_cache))), batch(int(multiple)))
    # Not getrusage: its peak begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak": 1024 * kib}))


if __name__ == "__main__":
    main(*sys.argv[1:])
