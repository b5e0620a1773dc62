"""Several widths of one vector against FlagEmbedding's base model."""

import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from chuxin.losses.dense import dense_scores
from chuxin.losses.infonce import infonce
from chuxin.losses.matryoshka import cut, matryoshka


def test_equals_flagembedding_base_model(flag, draw_texts) -> None:
    from FlagEmbedding.finetune.embedder.encoder_only.base.modeling import BiEncoderOnlyEmbedderModel

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.5,
    )  # fmt: skip
    base = XLMRobertaModel(config, add_pooling_layer=False)
    model = BiEncoderOnlyEmbedderModel(
        base, temperature=0.05, use_mrl=True, mrl_dims=[4, 8, 99], normalize_embeddings=True
    ).train()
    sides = [flag.padded(draw_texts(lengths, seed)) for seed, lengths in enumerate(([6, 9], [12, 5, 9, 30]))]
    theirs = model(*sides).loss
    vectors = (cut(base(**side).last_hidden_state[:, 0], 16) for side in sides)
    ours = matryoshka(lambda q, p: infonce(dense_scores(q, p) / 0.05, torch.tensor([0, 2])), (4, 8, 99), *vectors)
    torch.testing.assert_close(ours.mean(), theirs, rtol=0, atol=1e-4)
    weights = [base.embeddings.word_embeddings.weight, base.encoder.layer[0].attention.self.value.weight]
    gradients = [torch.autograd.grad(side, weights) for side in (ours.mean(), theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)


def test_each_width_counts_alike_and_every_argument_is_cut() -> None:
    def loss(*vectors: torch.Tensor) -> torch.Tensor:
        assert all(torch.allclose(vector.norm(dim=1), torch.ones(len(vector))) for vector in vectors)
        return torch.full((2,), float(sum(vector.shape[1] for vector in vectors)))

    assert matryoshka(loss, (2, 4), torch.randn(2, 6), torch.randn(5, 6), torch.randn(3, 6)).tolist() == [9.0, 9.0]
