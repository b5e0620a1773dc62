"""The RetroMAE objective: the same loss and gradients in any micro-batches and on two gloo ranks."""

from pathlib import Path

import pytest
import torch

from chuxin.training.plan_reader import read_batches

from . import processes, text_ranks

BUDGET = 60


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts")
    text_ranks.write_plan(path)
    return path


@pytest.fixture(scope="module")
def results(directory: Path) -> tuple[list, list, list]:
    return text_ranks.steps(directory, BUDGET), *processes.both(text_ranks, directory, BUDGET)


def assert_same(step: dict, other: dict) -> None:
    for name, mean in step["means"].items():
        torch.testing.assert_close(other["means"][name], mean, rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(other["by_source"], step["by_source"], rtol=1e-5, atol=1e-5)
    assert step["gradients"].keys() == other["gradients"].keys()
    for name, gradient in step["gradients"].items():
        torch.testing.assert_close(other["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_two_ranks_equal_one_process(results: tuple[list, list, list]) -> None:
    for alone, *both in zip(*results, strict=True):
        for rank in both:
            assert_same(alone, rank)
        assert alone["tokens"][0] == sum(rank["tokens"][0] for rank in both)


def test_ranks_with_unequal_shares_run_equally_many_passes(results: tuple[list, list, list]) -> None:
    _, first, second = results
    assert [step["rows"] for step in second] == [2, 3, 0]
    for one, other in zip(first, second, strict=True):
        assert one["sent"] == other["sent"] == [False] * (len(one["sent"]) - 1) + [True]
        # A weight without a gradient on one rank is one that ZeRO waits for on the others.
        assert one["gradients"].keys() == other["gradients"].keys()
    assert max(len(step["sent"]) for step in first) > 1


@pytest.mark.parametrize("budget", [1, 10_000])
def test_micro_batches_change_nothing(directory: Path, results: tuple[list, list, list], budget: int) -> None:
    for step, other in zip(results[0], text_ranks.steps(directory, budget), strict=True):
        assert len(other["sent"]) == (other["rows"] if budget == 1 else 1)
        assert_same(step, other)


def test_terms_are_means_over_tokens_and_sums_over_sources(directory: Path) -> None:
    (batch,) = list(read_batches(text_ranks.plan(directory), 0, 1, 2, 2))
    module = text_ranks.tiny(dropout=0.0)
    objective = text_ranks.Rebuild(module, text_ranks.DRAWING, 10_000, text_ranks.SOURCES)
    prepared = objective.prepare(batch)
    (part,) = prepared.parts
    losses = module(part.texts)
    terms = objective.backward(prepared, torch.device("cpu"), lambda loss, last: None)
    encoder = losses.encoder / sum(part.texts.masked)
    decoder = losses.decoder / sum(part.texts.maskable)
    assert list(terms.means) == ["loss", "encoder_loss", "decoder_loss"]
    for name, value in zip(terms.means, (encoder + decoder, encoder, decoder), strict=True):
        torch.testing.assert_close(terms.means[name], value.detach())
    expected = torch.zeros(2, 2)
    for n, source in enumerate(part.source_N.tolist()):
        own = losses.encoder_N[n] / max(part.texts.masked[n], 1) + losses.decoder_N[n] / max(part.texts.maskable[n], 1)
        expected[source] += torch.stack([own, torch.ones(())])
    torch.testing.assert_close(terms.by_source, expected)
    assert terms.by_source[:, 1].tolist() == [3.0, 3.0]


def test_draws_follow_from_seed_step_and_row(directory: Path) -> None:
    def keys(world: int, rank: int, seed: int = 1) -> dict[tuple[int, ...], int]:
        drawing = text_ranks.DRAWING._replace(seed=seed)
        objective = text_ranks.Rebuild(text_ranks.tiny(), drawing, 40, text_ranks.SOURCES)
        found = {}
        for batch in read_batches(text_ranks.plan(directory), rank, world, 1, 3):
            for part in objective.prepare(batch).parts:
                texts = part.texts.packed.ids_T.split(part.texts.packed.lengths)
                pairs = zip(texts, part.texts.key_N.tolist(), strict=True)
                found |= {(batch.step, *text.tolist()): key for text, key in pairs if len(text) > 1}
        return found

    alone = keys(1, 0)
    assert alone == keys(2, 0) | keys(2, 1) and len(set(alone.values())) == len(alone) == 16
    assert not set(alone.values()) & set(keys(1, 0, seed=2).values())
