"""A longer table: the same on texts of the old length, and what Hugging Face's own model makes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer, save_model
from chuxin.models.encoder import M3Model, new_heads
from chuxin.models.packed import pack
from chuxin.models.positions import extend_positions


def texts(lengths: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(4, 260, length) for length in lengths]


def test_texts_of_the_old_length_stay_the_same_to_the_bit(tiny_model: str, tmp_path: Path) -> None:
    short = pack(texts((1, 3, 64, 20)))
    model = load_model(tiny_model)
    with torch.inference_mode():
        before = model(short, heads=True)
        extend_positions(model, 150, "x")
        after = model(short, heads=True)
    assert model.max_length == 150
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    save_model(model, load_tokenizer(tiny_model), str(tmp_path))
    again = load_model(str(tmp_path))
    assert again.max_length == 150
    with torch.inference_mode():
        assert torch.equal(again(short).dense_NH, before.dense_NH)


def test_learned_rows_are_repeated_and_reserved_ones_are_not(tiny_model: str) -> None:
    model = load_model(tiny_model)
    old_PH = model.backbone.embeddings.position_embeddings.weight.detach().clone()
    extend_positions(model, 150, "x")
    new_PH = model.backbone.embeddings.position_embeddings.weight
    assert new_PH.requires_grad and new_PH.shape == (152, 32)
    assert torch.equal(new_PH[:66], old_PH)
    assert torch.equal(new_PH[66:130], old_PH[2:])
    assert torch.equal(new_PH[130:], old_PH[2:24])


def test_long_texts_in_hugging_face_s_own_model(tiny_model: str, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    extend_positions(model, 150, "x")
    save_model(model, load_tokenizer(tiny_model), str(tmp_path))
    long = texts((150, 65))
    with torch.inference_mode():
        dense_NH = model(pack(long)).dense_NH
        # Both the model as it stands in memory and as it is read from the files.
        for reference in (model.backbone, AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()):
            first = [reference(input_ids=torch.from_numpy(text)[None]).last_hidden_state[0, 0] for text in long]
            expected_NH = torch.nn.functional.normalize(torch.stack(first), dim=-1)
            torch.testing.assert_close(dense_NH, expected_NH, rtol=0, atol=1e-5)


def test_bert_has_no_reserved_rows() -> None:
    config = BertConfig(vocab_size=400, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=8, max_position_embeddings=20)  # fmt: skip
    model = M3Model(BertModel(config, add_pooling_layer=False), *new_heads(8, 8, 0.02), False).eval()
    extend_positions(model, 45, "x")
    table_PH = model.backbone.embeddings.position_embeddings.weight
    assert torch.equal(table_PH[20:40], table_PH[:20]) and torch.equal(table_PH[40:], table_PH[:5])
    with torch.inference_mode():
        assert model(pack(texts((45,)))).dense_NH.shape == (1, 8)


def test_a_model_is_not_shortened(tiny_model: str) -> None:
    model = load_model(tiny_model)
    with pytest.raises(InputError, match="init.max_len: 63 tokens are fewer than the 64 that the model takes"):
        extend_positions(model, 63, "init.max_len")
    extend_positions(model, 64, "init.max_len")
    assert model.max_length == 64
