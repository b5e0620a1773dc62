"""Further candidates against sentence-transformers' MultipleNegativesRankingLoss."""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from chuxin.losses.dense import dense_scores
from chuxin.losses.directions import further_scores, no_passage_negatives, no_query_negatives
from chuxin.losses.groups import own_passages
from chuxin.losses.unified import head_loss

B, G, H, T = 4, 3, 8, 0.05


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, H, requires_grad=True), torch.randn(B * G, H, requires_grad=True)


def unit(*vectors: torch.Tensor) -> list[torch.Tensor]:
    return [torch.nn.functional.normalize(side, dim=-1) for side in vectors]


def reference(query, passage, **settings) -> torch.Tensor:
    """Normalises by itself. Its columns are positives, first negatives, second negatives."""
    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / T, **settings)
    return loss.compute_loss_from_embeddings([query, *passage.view(B, G, H).unbind(1)], None)


def same(vectors, ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(side, vectors, retain_graph=True) for side in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)


def extra(query, passage, kinds: set[str]) -> torch.Tensor:
    first, hashes = torch.arange(B) * G, torch.arange(100, 100 + B * G)
    parts = []
    if "query_to_query" in kinds:
        excluded = no_query_negatives(torch.arange(B), torch.arange(B), hashes[first])
        parts.append(further_scores(query, query, excluded))
    if "doc_to_doc" in kinds:
        own = own_passages(first, torch.full((B,), G), B * G)
        excluded = no_passage_negatives(first, own, torch.arange(B), hashes)
        parts.append(further_scores(passage[first], passage, excluded))
    return torch.cat(parts, 1) / T


@pytest.mark.parametrize("kinds", [("query_to_query",), ("doc_to_doc",), ("query_to_query", "doc_to_doc")])
def test_further_directions_equal_sentence_transformers(vectors, kinds) -> None:
    query, passage = unit(*vectors)
    scores, first = dense_scores(query, passage) / T, torch.arange(B) * G
    ours = head_loss(scores, first, torch.zeros(B, B * G, dtype=torch.bool), extra_BX=extra(query, passage, set(kinds)))
    same(vectors, ours.mean(), reference(*vectors, directions=("query_to_doc", *kinds)))


def test_queries_with_the_same_text_or_positive_are_no_negatives(vectors) -> None:
    query, _ = vectors
    excluded = no_query_negatives(torch.tensor([1]), torch.tensor([9, 5, 5, 8]), torch.tensor([1, 2, 3, 2]))
    assert further_scores(query[1:2], query, excluded).isneginf().tolist() == [[False, True, True, True]]


def test_copies_of_query_and_positive_are_no_negatives_of_a_positive() -> None:
    hashes = torch.tensor([40, 41, 42, 7, 40, 45, 46, 47, 48, 49, 50, 51])
    own = own_passages(torch.tensor([0]), torch.tensor([3]), B * G)
    excluded = no_passage_negatives(torch.tensor([0]), own, torch.tensor([7]), hashes)
    assert excluded[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_rank_without_queries(vectors) -> None:
    query, passage = vectors
    none = torch.zeros(0, dtype=torch.int64)
    no_query = no_query_negatives(none, torch.arange(B), torch.arange(B))
    no_passage = no_passage_negatives(none, own_passages(none, none, B * G), none, torch.arange(B * G))
    further = torch.cat([
        further_scores(query[:0], query, no_query), further_scores(passage[none], passage, no_passage)
    ], 1)  # fmt: skip
    losses = head_loss(dense_scores(query[:0], passage), none, extra_BX=further)
    losses.sum().backward()
    assert losses.shape == (0,) and not passage.grad.any()
