"""The unified loss against FlagEmbedding's whole training step, and the places where theirs fails."""

import pytest
import torch

from chuxin.losses.dense import dense_scores
from chuxin.losses.distillation import teacher
from chuxin.losses.groups import own_columns, own_passages
from chuxin.losses.multivector import multivector_scores, token_vectors
from chuxin.losses.sparse import sparse_scores, token_weights
from chuxin.losses.unified import Scores, head_loss, unified
from chuxin.models.encoder import M3Model
from chuxin.models.packed import pack

B, G, T = 3, 4, 0.05
FIRST, COUNT = torch.arange(B) * G, torch.full((B,), G)
FOREIGN = ~own_passages(FIRST, COUNT, B * G)


@pytest.fixture
def texts(draw_texts) -> tuple[list[list[int]], list[list[int]]]:
    # All passages have one length: theirs floors the multi-vector score of padded ones at 0.
    return draw_texts([6, 11, 8]), draw_texts([14] * (B * G), seed=1)


def our_scores(model, texts, special) -> Scores:
    """Scores by the same weights as FlagEmbedding's model has."""
    ours = M3Model(model.model, model.sparse_linear, model.colbert_linear, heads_trained=False)
    sides = []
    for side in texts:
        packed, lengths = pack(side), torch.tensor([len(text) for text in side])
        dense, weight, vector = ours(packed, heads=True)
        sides.append((dense, token_weights(packed.ids_T, weight, lengths), token_vectors(vector, lengths)))
    dense, weights, vectors = zip(*sides, strict=True)
    heads = dense_scores(*dense), sparse_scores(*weights, special), multivector_scores(*vectors)
    return Scores(*(head / T for head in heads))


def same(model, ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    weights = list(model.parameters())
    gradients = [torch.autograd.grad(side, weights, allow_unused=True) for side in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("self_distill", [False, True])
@pytest.mark.parametrize("distill", ["none", "kl_div", "m3_kd_loss"])
def test_equals_flagembedding(flag, texts, self_distill, distill) -> None:
    model = flag.model(use_self_distill=self_distill, kd_loss_type=distill)
    torch.manual_seed(5)
    score = torch.randn(B, G)
    taught = None if distill == "none" else teacher(score, *own_columns(FIRST, COUNT, G))
    given = None if distill == "none" else score.flatten().tolist()
    theirs = model(*map(flag.padded, texts), teacher_scores=given).loss
    losses, _ = unified(our_scores(model, texts, flag.special), FIRST, None, taught, distill, self_distill)
    same(model, losses.mean(), theirs)


def test_without_in_batch_negatives_each_group_stands_alone_where_theirs_raises(flag, texts) -> None:
    model = flag.model(use_self_distill=True)
    scores = our_scores(model, texts, flag.special)
    losses, _ = unified(scores, FIRST, FOREIGN, self_distill=True)
    for b in range(B):
        own = slice(b * G, b * G + G)
        alone, _ = unified(Scores(*(head[b : b + 1, own] for head in scores)), torch.zeros(1, dtype=torch.int64),
                           self_distill=True)  # fmt: skip
        torch.testing.assert_close(losses[b], alone[0])
    with pytest.raises(IndexError, match="out of bounds"):
        # Six queries with groups of two: more queries than passages in a group.
        model(flag.padded(texts[0] * 2), flag.padded(texts[1]), no_in_batch_neg_flag=True)


def test_without_in_batch_negatives_their_ensemble_has_no_loss_and_ours_has(flag, texts) -> None:
    model = flag.model()
    dense, sparse, multi = our_scores(model, texts, flag.special)
    # What their loss is, if the ensemble's share is 0: three heads over their own groups.
    shares = [head_loss(head, FIRST, FOREIGN).mean() for head in (dense, sparse, multi)]
    theirs = model(*map(flag.padded, texts), no_in_batch_neg_flag=True).loss
    torch.testing.assert_close(theirs, (shares[0] + 0.1 * shares[1] + shares[2]) / 4, rtol=1e-5, atol=1e-4)
    losses, terms = unified(Scores(dense, sparse, multi), FIRST, FOREIGN)
    expected = head_loss(dense + 0.3 * sparse + multi, FIRST, FOREIGN)
    torch.testing.assert_close(terms["ensemble_loss"], expected)
    assert (expected > 0.01).any()
    torch.testing.assert_close(losses.mean() - expected.mean() / 4, theirs, rtol=1e-5, atol=1e-4)


def test_texts_encoded_in_parts_score_as_at_once_where_theirs_raises(flag, texts, draw_texts) -> None:
    model = flag.model(sub_batch_size=2)
    features = [{key: value[:, :length] for key, value in flag.padded(draw_texts([length] * 2)).items()}
                for length in (5, 9)]  # fmt: skip
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        model.encode(features)
    at_once = our_scores(model, texts, flag.special)
    parts = [our_scores(model, (texts[0], texts[1][start : start + 5]), flag.special) for start in (0, 5, 10)]
    for whole, pieces in zip(at_once, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("distill", ["kl_div", "m3_kd_loss"])
def test_an_untaught_group_has_the_loss_of_its_label(flag, texts, distill) -> None:
    scores = our_scores(flag.model(), texts, flag.special)
    known = torch.randn(B, G)
    known[1, 2] = float("nan")
    taught = teacher(known, *own_columns(FIRST, COUNT, G))
    for head in scores:
        losses = head_loss(head, FIRST, None, taught, distill)
        plain = head_loss(head, FIRST)
        torch.testing.assert_close(losses[1], plain[1])
        assert losses.isfinite().all() and (losses[[0, 2]] - plain[[0, 2]]).abs().min() > 1e-4


def test_ragged_groups_of_a_tile_are_those_of_the_whole(flag, texts) -> None:
    scores = our_scores(flag.model(), texts, flag.special)
    count = torch.tensor([5, 1, 6])
    first = torch.cumsum(count, 0) - count
    taught = teacher(torch.randn(B, 6), *own_columns(first, count, 6))
    excluded = torch.rand(B, B * G) < 0.3
    whole, terms = unified(scores, first, excluded, taught, "m3_kd_loss", True)
    for b in range(B):
        row = slice(b, b + 1)
        tile = type(taught)(*(field[row] for field in taught))
        part, _ = unified(Scores(*(head[row] for head in scores)), first[row], excluded[row], tile, "m3_kd_loss", True)
        torch.testing.assert_close(part[0], whole[b])
    dense, sparse, multi, ensemble, *taught_by = terms.values()
    expected = (dense + ensemble + 0.1 * sparse + multi) / 4
    torch.testing.assert_close(whole, (expected + (taught_by[0] + 0.1 * taught_by[1] + taught_by[2]) / 3) / 2)
    assert not any(term.requires_grad for term in terms.values())


def test_the_dense_losses_can_be_given(flag, texts) -> None:
    scores = our_scores(flag.model(), texts, flag.special)
    given, plain = torch.tensor([1.0, 2.0, 3.0]), unified(scores, FIRST)
    losses, terms = unified(scores, FIRST, dense_losses_B=given)
    assert torch.equal(terms["dense_loss"], given)
    torch.testing.assert_close(losses - plain[0], (given - plain[1]["dense_loss"]) / 4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("distill", ["kl_div", "m3_kd_loss"])
def test_excluding_everything_gives_no_nan(flag, texts, distill) -> None:
    model = flag.model()
    scores = our_scores(model, texts, flag.special)
    taught = teacher(torch.randn(B, G), *own_columns(FIRST, COUNT, G))
    everything = torch.ones(B, B * G, dtype=torch.bool)
    losses, _ = unified(scores, FIRST, everything, taught, distill, True)
    losses.sum().backward()
    assert losses.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_further_candidates_count_in_both_the_label_s_and_the_teacher_s_loss(flag, texts) -> None:
    scores = our_scores(flag.model(), texts, flag.special).dense_BC.detach().requires_grad_()
    further = torch.tensor([[1.0, float("-inf")]] * B)
    taught = teacher(torch.randn(B, G), *own_columns(FIRST, COUNT, G))
    for distill in ("none", "m3_kd_loss"):
        ours = head_loss(scores, FIRST, FOREIGN, taught, distill, extra_BX=further)
        wider = torch.cat([scores, further[:, :1]], 1)
        excluded = torch.cat([FOREIGN, torch.zeros(B, 1, dtype=torch.bool)], 1)
        torch.testing.assert_close(ours, head_loss(wider, FIRST, excluded, taught, distill))
        assert torch.autograd.grad(ours.sum(), scores)[0].isfinite().all()


def test_a_rank_without_queries_gets_no_losses_and_a_graph() -> None:
    leaves = [torch.zeros(0, 5, requires_grad=True) for _ in range(3)]
    none = torch.zeros(0, dtype=torch.int64)
    taught = teacher(torch.zeros(0, 1), *own_columns(none, none, 1))
    for distill in ("none", "kl_div", "m3_kd_loss"):
        losses, terms = unified(Scores(*leaves), none, torch.zeros(0, 5, dtype=torch.bool), taught, distill, True)
        losses.sum().backward()
        assert losses.shape == (0,) and len(terms) == 7
