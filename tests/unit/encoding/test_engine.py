from pathlib import Path

import numpy as np
import pytest
import torch
from FlagEmbedding import BGEM3FlagModel
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from chuxin.encoding import engine
from chuxin.encoding.engine import Encoder, length_batches
from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer, quiet_transformers, save_model
from chuxin.models.config import InitConfig
from chuxin.models.start import new_model

TEXTS = [
    "医生在北京",
    "",
    "学生在成都学习做菜,第二天才回来。" * 3,
    "note",
    "老师参观博物馆",
    "长" * 500,
    "医生在北京",
]


def one_by_one(path: str, texts: list[str], max_length: int) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, add_pooling_layer=False).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
            state = model(**inputs).last_hidden_state[0, 0]
            rows.append((state / state.norm()).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("batch_tokens", [1, 70, 10_000])
def test_equal_to_one_by_one(tiny_model: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK", 3)  # chunk borders inside the texts
    found = Encoder(tiny_model, 40, batch_tokens).encode(TEXTS)
    np.testing.assert_allclose(found, one_by_one(tiny_model, TEXTS, 40), rtol=0, atol=1e-5)
    assert found.dtype == np.float32


def test_nothing_gives_nothing(tiny_model: str) -> None:
    assert Encoder(tiny_model, 40, 100).encode([]).shape == (0, 32)


def test_bfloat16_is_close(tiny_model: str) -> None:
    exact, rough = (
        Encoder(tiny_model, 40, 100, dtype).encode(TEXTS) for dtype in ("float32", torch.bfloat16)
    )
    assert rough.dtype == np.float32
    assert not np.array_equal(exact, rough)
    assert (exact * rough).sum(axis=1).min() > 0.999


def test_tokens_are_cut_only_when_asked(tiny_model: str) -> None:
    encoder = Encoder(tiny_model, 40, 100)
    cut, whole = encoder.tokenize(TEXTS), encoder.tokenize(TEXTS, truncate=False)
    assert [len(ids) for ids in cut] == [min(40, len(ids)) for ids in whole]
    assert encoder.tokenize(TEXTS) == cut
    np.testing.assert_array_equal(encoder.encode_ids(cut), encoder.encode(TEXTS))


def test_lengths_beyond_the_positions_are_refused(tiny_model: str) -> None:
    Encoder(tiny_model, 64, 100).encode(["长" * 500])
    with pytest.raises(InputError, match="3 to 64 tokens, not 65"):
        Encoder(tiny_model, 65, 100)


def test_a_tokenizer_of_another_model_is_refused(tiny_model: str, tmp_path: Path) -> None:
    # the weights of a smaller vocabulary beside the tokenizer of a larger one
    config = InitConfig(seed=3, passages="none", max_texts=1, vocab_size=400, layers=1, hidden=32, heads=4,
                        intermediate=64, max_len=64)  # fmt: skip
    save_model(new_model(config, 300), load_tokenizer(tiny_model), str(tmp_path))
    with pytest.raises(InputError, match="the embedding table 300"):
        Encoder(str(tmp_path), 40, 100)


@pytest.fixture(scope="module")
def trained_heads(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with heads as training could leave them: negative weights too, multi-vectors of another width."""
    model, directory = load_model(tiny_model), str(tmp_path_factory.mktemp("models") / "heads")
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model.sparse_linear, model.colbert_linear = torch.nn.Linear(32, 1), torch.nn.Linear(32, 24)
        torch.nn.init.normal_(model.sparse_linear.weight)
    model.heads_trained = True
    save_model(model, load_tokenizer(tiny_model), directory)
    return directory


@pytest.mark.parametrize("batch_tokens", [1, 70, 10_000])
def test_all_outputs_are_flagembedding_s(
    trained_heads: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # <unk>, special tokens inside the text, a repeated token, nothing at all
    texts = [*TEXTS, "<unk><s>note</s> note note", "学习学习学习", "𠮷野家"]
    with quiet_transformers():
        reference = BGEM3FlagModel(trained_heads, use_fp16=False, devices="cpu", colbert_dim=24).encode(
            texts, max_length=40, return_dense=True, return_sparse=True, return_colbert_vecs=True
        )
    monkeypatch.setattr(engine, "CHUNK", 4)
    encoder = Encoder(trained_heads, 40, batch_tokens)
    found = encoder.encode_all(texts)
    np.testing.assert_allclose(found.dense_NH, reference["dense_vecs"], rtol=0, atol=1e-4)
    assert len(found.sparse) == len(found.multi_vector) == len(texts)
    for (ids, weights), expected in zip(found.sparse, reference["lexical_weights"], strict=True):
        assert ids.tolist() == sorted(map(int, expected))
        assert weights.tolist() == pytest.approx([expected[str(i)] for i in ids], abs=1e-4)
        assert (ids.dtype, weights.dtype) == (np.int64, np.float32)
    assert 0 < sum(len(ids) for ids, _ in found.sparse) < sum(len(set(row)) for row in encoder.tokenize(texts))
    for vectors, expected in zip(found.multi_vector, reference["colbert_vecs"], strict=True):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(encoder.encode(texts), found.dense_NH, rtol=0, atol=1e-6)


def test_all_outputs_of_nothing(tiny_model: str) -> None:
    found = Encoder(tiny_model, 40, 100).encode_all([])
    assert found.dense_NH.shape == (0, 32) and found.sparse == found.multi_vector == []


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True)
