import dataclasses
from pathlib import Path

import pytest
import torch

from chuxin.artifacts import Attempt
from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer, save_model
from chuxin.release.config import MergeConfig, Weighted
from chuxin.release.merge import distance, merge
from chuxin.release.pipeline import merge_models


def variant(source: str, target: Path, seed: int, trained: bool) -> str:
    model = load_model(source)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.heads_trained = trained
    save_model(model, load_tokenizer(source), str(target))
    return str(target)


@pytest.fixture
def models(tiny_model: str, tmp_path: Path) -> list[str]:
    return [variant(tiny_model, tmp_path / str(seed), seed, trained=True) for seed in range(3)]


def test_weights_are_the_weighted_mean_heads_included(models: list[str]) -> None:
    merged = merge([(models[0], 1.0), (models[1], 2.0), (models[2], 1.0)]).state_dict()
    states = [load_model(path).state_dict() for path in models]
    assert {"sparse_linear.weight", "colbert_linear.weight"} <= set(merged)
    for name, value in merged.items():
        wanted = 0.25 * states[0][name] + 0.5 * states[1][name] + 0.25 * states[2][name]
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)


def test_a_model_merged_with_itself_is_itself_to_the_bit(models: list[str]) -> None:
    merged, own = merge([(models[0], 0.5), (models[0], 0.5)]).state_dict(), load_model(models[0]).state_dict()
    assert all(torch.equal(merged[name], own[name]) for name in own)


def test_heads_that_were_never_trained_do_not_dilute_trained_ones(tiny_model: str, models: list[str],
                                                                  tmp_path: Path) -> None:
    plain = variant(tiny_model, tmp_path / "plain", 9, trained=False)
    merged, own = merge([(plain, 1.0), (models[0], 1.0)]), load_model(models[0])
    assert merged.heads_trained and torch.equal(merged.sparse_linear.weight, own.sparse_linear.weight)
    assert not torch.equal(merged.backbone.embeddings.word_embeddings.weight,
                           own.backbone.embeddings.word_embeddings.weight)
    assert not merge([(plain, 1.0), (plain, 1.0)]).heads_trained


def test_the_stage_s_model_loads_and_lies_between(models: list[str], tmp_path: Path) -> None:
    attempt = Attempt(str(tmp_path / "merge"), "model")
    merge_models("model", [(models[0], 0.5), (models[1], 0.5)], attempt)
    written = load_model(attempt.path("model"))
    apart = distance(load_model(models[0]), load_model(models[1]))
    assert attempt.facts["distances"] == pytest.approx([apart / 2] * 2, rel=0.1)
    assert distance(written, load_model(models[0])) == pytest.approx(attempt.facts["distances"][0], abs=1e-6)


def test_models_that_do_not_fit_are_refused(models: list[str], tmp_path: Path) -> None:
    model, tokenizer = load_model(models[1]), load_tokenizer(models[1])
    model.colbert_linear = torch.nn.Linear(model.hidden, 4)
    save_model(model, tokenizer, str(tmp_path / "narrow"))
    with pytest.raises(InputError, match=r"narrow: colbert_linear.bias has shape \(4,\)"):
        merge([(models[0], 1.0), (str(tmp_path / "narrow"), 1.0)])
    tokenizer.add_tokens(["新词"])
    save_model(load_model(models[1]), tokenizer, str(tmp_path / "wider"))
    with pytest.raises(InputError, match="wider: its vocabulary is not that of"):
        merge([(models[0], 1.0), (str(tmp_path / "wider"), 1.0)])


def test_a_merge_needs_two_models_with_weight() -> None:
    one = Weighted("a/b", 1.0)
    with pytest.raises(ValueError, match="at least two"):
        MergeConfig((one,))
    with pytest.raises(ValueError, match="above 0"):
        dataclasses.replace(one, weight=0.0)
