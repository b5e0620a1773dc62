"""Two gloo ranks against one process: the same loss and gradients for all heads, also where a rank has no rows."""

import pytest
import torch

from . import processes, ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, dict]:
    directory = tmp_path_factory.mktemp("ranks")
    ranks.write_plan(directory)
    one = {name: ranks.steps(config, directory) for name, config in ranks.CASES.items()}
    return one, *processes.both(ranks, directory)


@pytest.mark.parametrize("case", ranks.CASES)
def test_two_ranks_equal_one_process(results: tuple[dict, dict, dict], case: str) -> None:
    for alone, *both in zip(*(result[case] for result in results), strict=True):
        for rank in both:
            assert list(rank["means"]) == list(alone["means"])
            for name, mean in alone["means"].items():
                torch.testing.assert_close(rank["means"][name], mean, rtol=1e-5, atol=1e-5, msg=name)
            torch.testing.assert_close(rank["by_source"], alone["by_source"], rtol=1e-5, atol=1e-5)
            for name, gradient in alone["gradients"].items():
                torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", ranks.CASES)
def test_ranks_with_unequal_shares_run_equally_many_passes(results: tuple[dict, dict, dict], case: str) -> None:
    _, first, second = (result[case] for result in results)
    assert [step["own_parts"] for step in second] == [1, 1, 0]
    assert min(step["own_parts"] for step in first) > 1
    for one, other in zip(first, second, strict=True):
        assert one["forward"] == other["forward"] and one["send"] == other["send"]
        assert one["send"] == [False] * (one["parts"] - 1) + [True]


def test_ranks_agree_about_more_than_nothing(results: tuple[dict, dict, dict]) -> None:
    for case, config in ranks.CASES.items():
        trained = {name for name, gradient in results[0][case][0]["gradients"].items() if gradient.abs().max() > 1e-4}
        assert "backbone.embeddings.word_embeddings.weight" in trained
        assert ("sparse_linear.weight" in trained) == ("colbert_linear.weight" in trained) == (config.heads == "all")
