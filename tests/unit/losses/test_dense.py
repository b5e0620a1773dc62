"""The dense score against FlagEmbedding's."""

import torch

from chuxin.losses.dense import dense_scores


def test_equals_flagembedding(flag) -> None:
    torch.manual_seed(0)
    model, query, passage = flag.model(), torch.randn(3, 6), torch.randn(5, 6)
    torch.testing.assert_close(dense_scores(query, passage) / 0.05, model.compute_dense_score(query, passage))


def test_half_precision_vectors_are_scored_in_fp32() -> None:
    query, passage = torch.randn(3, 6).bfloat16(), torch.randn(5, 6).bfloat16()
    expected = query.float() @ passage.float().T
    assert torch.equal(dense_scores(query, passage), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dense_scores(query, passage), expected)
