"""The loss of a step does not depend on how many queries a tile has."""

from dataclasses import replace

import pytest
import torch

from chuxin.training import tiles
from chuxin.training.plan_reader import Batch, read_batches

from . import ranks


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    directory = tmp_path_factory.mktemp("plan")
    ranks.write_plan(directory)
    return next(read_batches(ranks.plan(directory), 0, 1, 1, 1))


@pytest.mark.parametrize("case", ranks.CASES)
def test_tiles_of_one_query_change_nothing(batch: Batch, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(ranks.CASES[case], seed=3)
    whole = ranks.step(ranks.tiny(), config, batch)
    seen = []
    monkeypatch.setattr(tiles, "SCORES", 1)
    monkeypatch.setattr(tiles, "OWN_TILE", 1)
    inner = tiles.losses
    monkeypatch.setattr(tiles, "losses", lambda tile, *rest: seen.append(len(tile.count_B)) or inner(tile, *rest))
    single = ranks.step(ranks.tiny(), config, batch)
    assert seen == [1] * batch.rows
    for name, mean in whole["means"].items():
        torch.testing.assert_close(single["means"][name], mean, rtol=1e-5, atol=1e-5, msg=name)
    for name, gradient in whole["gradients"].items():
        torch.testing.assert_close(single["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_source_the_plan_does_not_name_is_not_counted() -> None:
    by_source = tiles._by_source(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, -1, 1]), 2)
    assert by_source.tolist() == [[0, 0], [5, 2]]
