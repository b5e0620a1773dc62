"""The cross-encoder against transformers' own and FlagEmbedding's reader, in both directions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_tokenizer, quiet_transformers
from chuxin.models.packed import pack
from chuxin.models.reranker import CrossEncoder, load_reranker, pair_ids, save_reranker

PAIRS = [
    ("如何更换内胎", "先把车轮拆下来,再取出旧内胎。"),
    ("北京", "老师在北京学习做菜,傍晚才回来。"),
    ("The third note", "上海"),
    ("谁修理自行车", "工人在成都修理自行车,第二天才回来。农民在广州写一篇文章。"),
]


@pytest.fixture(scope="module")
def saved(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("reranker") / "saved")
    save_reranker(load_reranker(tiny_model, seed=5), load_tokenizer(tiny_model), directory)
    return directory


@pytest.fixture(scope="module")
def pairs(saved: str) -> list[np.ndarray]:
    tokenizer = load_tokenizer(saved)
    return [pair_ids(tokenizer(query)["input_ids"], tokenizer(passage)["input_ids"]) for query, passage in PAIRS]


def scores(model: CrossEncoder, pairs: list[np.ndarray]) -> torch.Tensor:
    with torch.inference_mode():
        return model(pack(pairs))


def padded_scores(directory: str, pairs: list[np.ndarray]) -> torch.Tensor:
    theirs = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    longest = max(map(len, pairs))
    ids = torch.tensor([[*pair, *[1] * (longest - len(pair))] for pair in pairs])
    mask = torch.tensor([[1] * len(pair) + [0] * (longest - len(pair)) for pair in pairs])
    with torch.inference_mode():
        return theirs(input_ids=ids, attention_mask=mask).logits[:, 0]


def test_pairs_are_what_the_tokenizer_makes_of_them(saved: str, pairs: list[np.ndarray]) -> None:
    tokenizer = load_tokenizer(saved)
    assert [pair.tolist() for pair in pairs] == [tokenizer(*texts)["input_ids"] for texts in PAIRS]


def test_transformers_loads_every_weight_and_gives_the_same_scores(saved: str, pairs: list[np.ndarray]) -> None:
    _, info = AutoModelForSequenceClassification.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(scores(load_reranker(saved), pairs), padded_scores(saved, pairs), rtol=0, atol=1e-5)


def test_flagembedding_gives_the_same_scores(saved: str, pairs: list[np.ndarray]) -> None:
    from FlagEmbedding import FlagReranker

    with quiet_transformers():
        reader = FlagReranker(saved, use_fp16=False, devices="cpu", max_length=64)
        theirs = reader.compute_score([list(pair) for pair in PAIRS])
    np.testing.assert_allclose(scores(load_reranker(saved), pairs).numpy(), theirs, rtol=0, atol=1e-5)


def test_a_directory_of_transformers_loads(saved: str, pairs: list[np.ndarray], tmp_path: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(saved)
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((tmp_path / "one/config.json").read_text())
    assert (tmp_path / "shards/model.safetensors.index.json").is_file()
    expected = scores(load_reranker(saved), pairs)
    for directory in (tmp_path / "one", tmp_path / "shards", tmp_path):
        assert torch.equal(scores(load_reranker(str(directory)), pairs), expected)


def test_the_classifier_is_drawn_from_the_seed_alone(tiny_model: str) -> None:
    one, other = (load_reranker(tiny_model, seed).classifier.state_dict() for seed in (5, 6))
    torch.manual_seed(1)
    again = load_reranker(tiny_model, 5).classifier.state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["out_proj.weight"], other["out_proj.weight"])


def test_a_trained_classifier_is_not_drawn_again(saved: str) -> None:
    states = [load_reranker(saved, seed).state_dict() for seed in (None, 9)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_what_is_no_reranker_is_refused(tiny_model: str, saved: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no classifier, so it is no reranker"):
        load_reranker(tiny_model)
    state = load_file(f"{saved}/model.safetensors")
    for name in ("config.json",):
        (tmp_path / name).write_text(Path(saved, name).read_text())
    for change, problem in (
        ({"classifier.out_proj.weight": torch.zeros(3, 32)}, r"classifier.out_proj.weight has shape \(3, 32\)"),
        ({"classifier.dense.bias": None}, "classifier.dense.bias has shape none"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=problem):
            load_reranker(str(tmp_path))


def test_bert_is_refused(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'bert' is not supported for rerankers"):
        load_reranker(str(tmp_path), seed=0)


def test_its_note_holds_the_longest_pair(saved: str) -> None:
    assert json.loads(Path(saved, "chuxin.json").read_text()) == {"max_length": 64}
