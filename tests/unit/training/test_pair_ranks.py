"""The listwise objective on two gloo ranks against one process, and a pair too long that only one of them holds."""

from pathlib import Path

import pytest
import torch
from torch import distributed

from . import pair_ranks, processes, ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, dict]:
    directory = tmp_path_factory.mktemp("pair_ranks")
    ranks.write_plan(directory)
    one = {name: pair_ranks.steps(config, directory) for name, config in pair_ranks.CASES.items()}
    return one, *processes.both(pair_ranks, directory)


@pytest.mark.parametrize("case", pair_ranks.CASES)
def test_two_ranks_equal_one_process(results: tuple[dict, dict, dict], case: str) -> None:
    for alone, *both in zip(*(result[case] for result in results), strict=True):
        assert sum(rank["tokens"] for rank in both) == alone["tokens"]
        assert max(gradient.abs().max() for gradient in alone["gradients"].values()) > 1e-3
        for rank in both:
            for name, mean in alone["means"].items():
                torch.testing.assert_close(rank["means"][name], mean, rtol=1e-5, atol=1e-5, msg=name)
            torch.testing.assert_close(rank["by_source"], alone["by_source"], rtol=1e-5, atol=1e-5)
            assert rank["gradients"].keys() == alone["gradients"].keys()
            for name, gradient in alone["gradients"].items():
                torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", pair_ranks.CASES)
def test_ranks_run_equally_many_passes_without_asking_each_other(
    results: tuple[dict, dict, dict], case: str
) -> None:
    _, first, second = (result[case] for result in results)
    assert second[-1]["own"] == 0 and min(step["own"] for step in first) > 0
    assert any(one["own"] > other["own"] for one, other in zip(first, second, strict=True))
    for one, other in zip(first, second, strict=True):
        passes = max(one["own"], other["own"], 1)
        assert one["forward"] == other["forward"] == passes
        assert one["send"] == other["send"] == [False] * (passes - 1) + [True]


def test_no_collective_runs_in_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of two ranks that never meet: what a step needs of the other follows from the plan."""
    ranks.write_plan(tmp_path)

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a collective")

    for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast"):
        monkeypatch.setattr(distributed, name, refuse)
    plan = ranks.plan(tmp_path)
    objective = pair_ranks.Listwise(pair_ranks.tiny(), pair_ranks.BASE, plan, 60)
    for rank in range(2):
        for batch in pair_ranks.read_batches(plan, rank, 2, 1, plan.batches):
            objective.backward(objective.prepare(batch), torch.device("cpu"), lambda loss, last: loss.backward())


def test_all_ranks_name_the_pair_that_one_of_them_holds(results: tuple[dict, dict, dict]) -> None:
    _, first, second = results
    assert first["refused"] == second["refused"]
    assert "query_id 10" in first["refused"] and f"the model takes {pair_ranks.TOO_LONG}" in first["refused"]
