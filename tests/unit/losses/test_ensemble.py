"""The ensemble against FlagEmbedding's."""

import torch

from chuxin.losses.ensemble import ensemble_scores


def test_equals_flagembedding(flag) -> None:
    torch.manual_seed(0)
    dense, sparse, multi = torch.randn(3, 2, 6)
    theirs = flag.model().ensemble_score(None, None, dense, sparse, multi)
    torch.testing.assert_close(ensemble_scores(dense, sparse, multi), theirs)
