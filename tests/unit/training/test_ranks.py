"""Two gloo ranks against one process: the same losses, gradients and weights, also where a rank has no rows."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from chuxin.errors import InputError
from chuxin.schema import PLAN_GROUPS, PLAN_TEXTS

SCRIPT = Path(__file__).with_name("ranks.py")
# Slices of the rows of each batch. Of two ranks the second takes the odd slices: fewer rows, and none in the last.
SLICES = [[0, 1, 2, 0, 2, 0, 3], [0, 1, 2, 3, 0, 1], [0, 2, 0]]


def write_plans(directory: Path) -> None:
    draw = np.random.default_rng(0)

    def ids(longest: int) -> list[int]:
        return [0, *draw.integers(3, 59, draw.integers(1, longest)).tolist(), 2]

    groups: list[dict] = []
    texts: list[dict] = []
    for batch, slices in enumerate(SLICES):
        for row, part in enumerate(slices):
            place = {"epoch": 0, "batch": batch, "slice": part, "row": row, "source": "s"}
            passages = [{"passage_id": 9, "text_hash": 1000 * batch + 10 * row + n, "token_ids": ids(20), "score": None}
                        for n in range(1 + row % 3)]  # fmt: skip
            query = {"query_id": 1, "query_hash": 9000 + row, "query_ids": ids(6), "passages": passages}
            groups.append({**place, **query})
            texts.append({**place, "passage_id": row, "offset": 0, "token_ids": ids(24)})
    # A false negative by text: another query's positive has the hash of this one's.
    groups[1]["passages"][0]["text_hash"] = groups[0]["passages"][0]["text_hash"]
    for name, schema, rows in (("groups", PLAN_GROUPS, groups), ("texts", PLAN_TEXTS, texts)):
        with pq.ParquetWriter(directory / f"{name}.parquet", schema) as writer:
            for batch, slices in enumerate(SLICES):
                for part in sorted(set(slices)):
                    own = [row for row in rows if (row["batch"], row["slice"]) == (batch, part)]
                    writer.write_table(pa.Table.from_pylist(own, schema))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    write_plans(directory)
    return directory


@pytest.fixture(scope="module")
def results(plans: Path) -> list[dict]:
    directory = plans
    environment = {**os.environ, "PYTHONPATH": "platform", "OMP_NUM_THREADS": "1"}
    second = subprocess.Popen([sys.executable, str(SCRIPT), "1", "2", str(directory)], env=environment)
    ranks = runpy.run_path(str(SCRIPT))
    one, first = ranks["run_all"](directory), ranks["run_as"](0, 2, directory)
    assert second.wait(timeout=120) == 0
    return [one, first, torch.load(directory / "1.pt", weights_only=False)]


@pytest.mark.parametrize("equal_passes", [False, True])
@pytest.mark.parametrize("kind", ["groups", "texts"])
def test_two_ranks_equal_one_process(results: list[dict], kind: str, equal_passes: bool) -> None:
    one, first, second = (result[kind, equal_passes] for result in results)
    for record, other in zip(one["records"], first["records"], strict=True):
        assert record["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert record["tokens"] == other["tokens"] and record["rows"] == other["rows"]
        assert record.get("accuracy") == pytest.approx(other.get("accuracy"))
    assert one["gradients"].keys() == first["gradients"].keys()
    for name, gradient in one["gradients"].items():
        for rank in (first, second):
            torch.testing.assert_close(rank["gradients"][name], gradient, rtol=0, atol=1e-5, msg=name)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])


def test_the_untrained_heads_stay_as_they_were(results: list[dict]) -> None:
    before = runpy.run_path(str(SCRIPT))["tiny"]().state_dict()
    after = results[0]["groups", False]["weights"]
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert "backbone.embeddings.word_embeddings.weight" in changed
    assert not any("linear" in name for name in changed)


@pytest.mark.parametrize("kind", ["groups", "texts"])
def test_micro_batches_change_nothing(results: list[dict], plans: Path, kind: str) -> None:
    small, large = results[0][kind, False], runpy.run_path(str(SCRIPT))["run"](kind, plans, budget=10**6)
    for record, other in zip(small["records"], large["records"], strict=True):
        assert record["loss"] == pytest.approx(other["loss"], abs=1e-5)
    for name, gradient in small["gradients"].items():
        torch.testing.assert_close(large["gradients"][name], gradient, rtol=0, atol=1e-5)


def test_the_loss_falls_and_the_record_is_complete(results: list[dict]) -> None:
    for kind, terms in (("groups", {"accuracy"}), ("texts", {"encoder_loss", "decoder_loss"})):
        records = results[0][kind, False]["records"]
        assert {"step", "epoch", "batch", "rows", "loss", "grad_norm", "lr", "tokens", "padding_share",
                "tokens_per_second", "seconds", "source"} | terms == set(records[0])  # fmt: skip
        assert [record["step"] for record in records] == [1, 2, 3]
        assert [record["rows"] for record in records] == [len(slices) for slices in SLICES]


@pytest.mark.parametrize("kind", ["groups", "texts"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(plans: Path, kind: str) -> None:
    ranks = runpy.run_path(str(SCRIPT))
    weights = ranks["tiny"]().state_dict()
    weights["backbone.encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    with pytest.raises(InputError, match=r"step 2 \(epoch 0, batch 1\): the loss is nan"):
        ranks["run"](kind, plans, done=1, weights=weights)
