"""Merges models of one shape by the weighted mean of their weights, heads included.

A mean of models trained from one start often beats each of them: refined ones with the one they were refined from
(LM-Cocktail, Xiao et al. 2023) or siblings of other data and seeds (model soups, Wortsman et al. 2022). Leaves out:
which weights are best (evaluation), spherical interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer
from chuxin.models.encoder import M3Model


def merge(models: Sequence[tuple[str, float]]) -> M3Model:
    """Returns the weighted mean of models, in float32; one model at a time is read beside it.

    Heads that were never trained are random numbers and would dilute trained ones: the mean of the heads is taken
    over the models whose heads are trained (over all, if none are).

    Args:
        models: Directory, URI or hub name of each, and its weight; weights are divided by their sum.

    Raises:
        InputError: Two models differ in vocabulary, shape or positions; names the file and the key.
    """
    trained = sum(weight for path, weight in models if load_model(path).heads_trained)
    total = sum(weight for _, weight in models)
    first = models[0][0]
    merged = load_model(first)
    vocabulary = load_tokenizer(first).get_vocab()
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in merged.state_dict().items()}
    for path, weight in models:
        if load_tokenizer(path).get_vocab() != vocabulary:
            raise InputError(path, f"its vocabulary is not that of {first}", "Merge models with one tokenizer")
        model = load_model(path)
        state = model.state_dict()
        _refuse_misfits(path, first, sums, state)
        for name, value in state.items():
            share = weight / total
            if trained and name.startswith(("sparse_linear.", "colbert_linear.")):
                share = weight / trained if model.heads_trained else 0.0
            sums[name] += share * value.double()
    merged.load_state_dict({name: value.to(merged.state_dict()[name].dtype) for name, value in sums.items()})
    merged.heads_trained = bool(trained)
    return merged


def distance(model: nn.Module, other: nn.Module) -> float:
    """Returns |a - b| / |b| over all weights of two models of one shape: how far apart they are."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    squares = [((a - b).double().square().sum().item(), b.double().square().sum().item()) for a, b in pairs]
    return (sum(s for s, _ in squares) / sum(s for _, s in squares)) ** 0.5


def _refuse_misfits(
    path: str, first: str, wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> None:
    for name in sorted({*wanted, *found}):
        shapes = [tuple(state[name].shape) if name in state else None for state in (found, wanted)]
        if shapes[0] != shapes[1]:
            problem = f"{name} has shape {shapes[0]}, and {shapes[1]} in {first}"
            raise InputError(path, problem, "Merge models of one shape")
