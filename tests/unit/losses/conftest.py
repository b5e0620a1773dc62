"""FlagEmbedding's M3 model around a tiny XLM-R, for the tests that compare with it."""

import types

import pytest
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

VOCABULARY, HIDDEN, SPECIAL = 40, 16, (0, 2, 1, 3)


def flag_m3(**settings) -> torch.nn.Module:
    """FlagEmbedding's training model, fresh weights from seed 0, dropout off, in training mode."""
    from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
    )  # fmt: skip
    parts = {
        "model": XLMRobertaModel(config, add_pooling_layer=False),
        "colbert_linear": torch.nn.Linear(HIDDEN, HIDDEN),
        "sparse_linear": torch.nn.Linear(HIDDEN, 1),
    }
    tokenizer = types.SimpleNamespace(
        cls_token_id=0, eos_token_id=2, pad_token_id=1, unk_token_id=3, padding_side="right"
    )
    given = {"temperature": 0.05, "normalize_embeddings": True, "unified_finetuning": True} | settings
    return EncoderOnlyEmbedderM3Model(parts, tokenizer=tokenizer, **given).train()


def padded(texts: list[list[int]]) -> dict[str, torch.Tensor]:
    """What a collator makes of token ids."""
    longest = max(map(len, texts))
    rows = [text + [1] * (longest - len(text)) for text in texts]
    mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


@pytest.fixture
def draw_texts():
    """Draws texts of given lengths: cls, tokens with repetitions, eos."""

    def draw(lengths: list[int], seed: int = 0) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [
            [0, *torch.randint(3, VOCABULARY, (length - 2,), generator=generator).tolist(), 2] for length in lengths
        ]

    return draw


@pytest.fixture
def flag():
    """The namespace of this file: importlib mode cannot import it by name."""
    return types.SimpleNamespace(model=flag_m3, padded=padded, special=SPECIAL, hidden=HIDDEN)
