"""The multi-vector score against a loop and against FlagEmbedding where no passage is padded."""

import pytest
import torch

from chuxin.losses.multivector import multivector_scores, token_vectors


def side(lengths: list[int], seed: int, width: int = 6):
    torch.manual_seed(seed)
    vector = torch.nn.functional.normalize(torch.randn(sum(lengths), width), dim=-1).requires_grad_()
    return vector, token_vectors(vector, lengths)


def naive(query, passage) -> torch.Tensor:
    rows = []
    for b in range(len(query.counts_N)):
        mine = query.vector_TD[query.text_T == b]
        row = []
        for p in range(len(passage.counts_N)):
            theirs = passage.vector_TD[passage.text_T == p]
            row.append((mine @ theirs.T).max(1).values.sum() / len(mine) if len(theirs) else mine.sum() * 0)
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("tile", [1, 60, 1 << 24])
def test_equals_the_loop_whatever_the_tile(tile) -> None:
    (query, queries), (passage, passages) = side([5, 2, 9], 0), side([3, 12, 1, 12, 7, 2, 4], 1)
    ours, expected = multivector_scores(queries, passages, tile), naive(queries, passages)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    upstream = torch.randn_like(ours)
    gradients = [
        torch.autograd.grad(scores, (query, passage), upstream, retain_graph=True) for scores in (ours, expected)
    ]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-5)


def test_equals_flagembedding_with_gradients(flag) -> None:
    model = flag.model()
    torch.manual_seed(2)
    states = [torch.randn(3, 6, flag.hidden, requires_grad=True), torch.randn(8, 11, flag.hidden, requires_grad=True)]
    masks = [torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]]), torch.ones(8, 11, dtype=torch.int64)]
    vectors = [
        torch.nn.functional.normalize(model._colbert_embedding(state, mask), dim=-1)
        for state, mask in zip(states, masks, strict=True)
    ]
    theirs = model.compute_colbert_score(*vectors, q_mask=masks[0])
    packed = (
        token_vectors(torch.nn.functional.normalize(model.colbert_linear(state[mask.bool()]), dim=-1), mask.sum(1))
        for state, mask in zip(states, masks, strict=True)
    )
    ours = multivector_scores(*packed) / model.temperature
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    leaves, upstream = [*states, *model.colbert_linear.parameters()], torch.randn_like(ours)
    gradients = [torch.autograd.grad(scores, leaves, upstream) for scores in (ours, theirs)]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-4)


def test_padding_floors_theirs_at_zero_and_takes_no_part_in_ours(flag) -> None:
    model = flag.model(temperature=1.0)
    query, passage = torch.tensor([[9.0, 9.0], [1.0, 0.0]]), torch.tensor([[9.0, 9.0], [-1.0, 0.0]])
    ours = multivector_scores(token_vectors(query, torch.tensor([2])), token_vectors(passage, torch.tensor([2])))
    padded = torch.tensor([[[-1.0, 0.0], [0.0, 0.0]]])
    mask = torch.ones(1, 2, dtype=torch.int64)
    theirs = [model.compute_colbert_score(query[None, 1:], side, q_mask=mask) for side in (padded[:, :1], padded)]
    assert (ours.item(), theirs[0].item(), theirs[1].item()) == (-1.0, -1.0, 0.0)


def test_a_query_of_one_token_scores_0_where_theirs_is_nan(flag) -> None:
    ours = multivector_scores(side([1], 0)[1], side([4], 1)[1])
    theirs = flag.model().compute_colbert_score(torch.zeros(1, 0, 6), torch.randn(1, 3, 6), q_mask=torch.ones(1, 1))
    assert ours.item() == 0 and theirs.isnan()


def test_first_tokens_are_left_out() -> None:
    _, texts = side([3, 1, 2], 0)
    assert texts.text_T.tolist() == [0, 0, 2] and texts.counts_N.tolist() == [2, 0, 1]


@pytest.mark.parametrize(("queries", "passages"), [([], [3, 4]), ([1], [3, 4]), ([4, 2], [1, 1]), ([4], [])])
def test_nothing_to_score_gives_zeros_and_a_graph(queries, passages) -> None:
    (query, left), (passage, right) = side(queries, 0), side(passages, 1)
    scores = multivector_scores(left, right)
    scores.sum().backward()
    assert scores.shape == (len(queries), len(passages)) and not scores.any()
    assert not query.grad.any() and not passage.grad.any()


def test_half_precision_vectors_are_scored_in_fp32() -> None:
    query, passage = side([4, 3], 0)[1], side([5, 6], 1)[1]
    low = [texts._replace(vector_TD=texts.vector_TD.bfloat16()) for texts in (query, passage)]
    expected = multivector_scores(*(texts._replace(vector_TD=texts.vector_TD.float()) for texts in low))
    assert torch.equal(multivector_scores(*low), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(multivector_scores(*low), expected)


def test_between_the_passes_only_the_places_are_kept() -> None:
    (query, queries), (passage, passages) = side([40] * 4, 0), side([100] * 8, 1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        multivector_scores(queries, passages)
    inputs = {query.data_ptr(), passage.data_ptr(), queries.vector_TD.data_ptr(), passages.vector_TD.data_ptr()}
    places = 4 * 39 * 8
    assert max(tensor.numel() for tensor in kept if tensor.data_ptr() not in inputs) <= places
