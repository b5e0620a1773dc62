"""The sparse score against FlagEmbedding's [B, L, V] form and a loop over dictionaries."""

import pytest
import torch

from chuxin.losses.sparse import sparse_scores, token_weights


def naive(query, passage, special) -> torch.Tensor:
    def bag(side, text) -> dict[int, torch.Tensor]:
        best = {}
        for token, weight, owner in zip(side.ids_T.tolist(), side.weight_T, side.text_T.tolist(), strict=True):
            if owner == text and token not in special and (token not in best or weight > best[token]):
                best[token] = weight
        return best

    zero = query.weight_T.sum() * 0
    rows = []
    for b in range(query.texts):
        mine = bag(query, b)
        theirs = [bag(passage, p) for p in range(passage.texts)]
        rows.append(torch.stack([sum((mine[t] * bag[t] for t in mine if t in bag), zero) for bag in theirs]))
    return torch.stack(rows)


def side(texts: list[list[int]], seed: int):
    torch.manual_seed(seed)
    ids = torch.tensor([token for text in texts for token in text], dtype=torch.int64)
    weight = torch.relu(torch.randn(len(ids))).requires_grad_()
    return token_weights(ids, weight, torch.tensor([len(text) for text in texts], dtype=torch.int64))


@pytest.fixture
def sides(draw_texts):
    # Passages of one and of two tokens (nothing but specials) are among them.
    passages = [*draw_texts([9, 30, 2, 17, 5, 30], seed=1), [0]]
    return side(draw_texts([12, 3, 8]), 1), side(passages, 2)


@pytest.mark.parametrize("tile", [1, 40, 1 << 24])
def test_equals_the_loop_whatever_the_tile(sides, flag, tile) -> None:
    query, passage = sides
    ours, expected = sparse_scores(query, passage, flag.special, tile), naive(query, passage, flag.special)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    upstream = torch.randn_like(ours)
    for leaf in (query.weight_T, passage.weight_T):
        gradients = (torch.autograd.grad(scores, leaf, upstream, retain_graph=True)[0] for scores in (ours, expected))
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_equals_flagembedding_with_gradients(flag, draw_texts) -> None:
    model = flag.model()
    texts = [draw_texts([7, 12]), draw_texts([9, 30, 14, 5], seed=1)]
    torch.manual_seed(3)
    states = [[torch.randn(len(text), flag.hidden, requires_grad=True) for text in half] for half in texts]
    leaves = [*states[0], *states[1], *model.sparse_linear.parameters()]
    theirs = model.compute_sparse_score(
        *(
            model._sparse_embedding(
                torch.nn.utils.rnn.pad_sequence(half, batch_first=True), flag.padded(ids)["input_ids"]
            )
            for half, ids in zip(states, texts, strict=True)
        )
    )
    ours = sparse_scores(*(
        token_weights(torch.tensor(sum(ids, [])), torch.relu(model.sparse_linear(torch.cat(half))).squeeze(-1),
                      torch.tensor([len(text) for text in ids]))
        for half, ids in zip(states, texts, strict=True)
    ), flag.special) / model.temperature  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    upstream = torch.randn_like(ours)
    gradients = [torch.autograd.grad(scores, leaves, upstream) for scores in (ours, theirs)]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-4)


def test_autocast_changes_nothing(sides, flag) -> None:
    expected = sparse_scores(*sides, flag.special)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sparse_scores(*sides, flag.special), expected)


def test_among_equal_weights_the_first_place_gets_the_gradient() -> None:
    weight = torch.tensor([2.0, 2.0, 1.0], requires_grad=True)
    passage = token_weights(torch.tensor([7, 7, 7]), weight, torch.tensor([3]))
    query = token_weights(torch.tensor([7]), torch.ones(1), torch.tensor([1]))
    sparse_scores(query, passage, ()).sum().backward()
    assert weight.grad.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("queries", [[], [[0, 2]]])
def test_nothing_to_score_gives_zeros_and_a_graph(queries, flag, draw_texts) -> None:
    query, passage = side(queries, 0), side(draw_texts([5, 6]), 1)
    scores = sparse_scores(query, passage, flag.special)
    scores.sum().backward()
    assert scores.shape == (len(queries), 2) and not scores.any()
    assert not passage.weight_T.grad.any() and query.weight_T.grad.shape == query.weight_T.shape
    assert sparse_scores(passage, side([], 0), flag.special).shape == (2, 0)


def test_no_buffer_has_the_size_of_the_vocabulary(flag) -> None:
    torch.manual_seed(0)
    ids = torch.randint(4, 250_002, (2000,))
    texts = token_weights(ids, torch.rand(2000, requires_grad=True), torch.full((20,), 100))
    with torch.profiler.profile(profile_memory=True) as profile:
        sparse_scores(texts, texts, flag.special).sum().backward()
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert largest <= 20 * 2000 * 4 * 4


def test_autocast_around_the_backward_pass_rounds_nothing(sides, flag) -> None:
    query, passage = sides
    upstream = torch.randn(query.texts, passage.texts)
    leaves = query.weight_T, passage.weight_T
    exact = torch.autograd.grad(sparse_scores(query, passage, flag.special), leaves, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        scores = sparse_scores(query, passage, flag.special)
        found = torch.autograd.grad(scores, leaves, upstream)
    for gradient, right in zip(found, exact, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-6, atol=1e-6)
