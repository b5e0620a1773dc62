import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
)

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer, quiet_transformers, save_model


@pytest.fixture
def copy(tiny_model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def assert_refused(call: object, where: str, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.where.endswith(where)
    assert all(word in caught.value.problem for word in words), caught.value.problem


def test_saved_and_loaded_to_the_bit(tiny_model: str, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    model.heads_trained = True
    save_model(model, load_tokenizer(tiny_model), str(tmp_path / "again"))
    again = load_model(str(tmp_path / "again"))
    assert again.heads_trained and not load_model(tiny_model).heads_trained
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert not again.training


def test_files_and_keys_are_the_field_s(tiny_model: str) -> None:
    names = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "sparse_linear.pt",
        "colbert_linear.pt",
        "chuxin.json",
    }
    assert names <= set(os.listdir(tiny_model))
    keys = load_file(f"{tiny_model}/model.safetensors").keys()
    assert "embeddings.word_embeddings.weight" in keys
    assert "encoder.layer.1.output.dense.weight" in keys
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", 32)):
        state = torch.load(f"{tiny_model}/{name}", weights_only=True)
        assert {key: tuple(value.shape) for key, value in state.items()} == {
            "weight": (rows, 32),
            "bias": (rows,),
        }
    # transformers 4 does not know version 5's class name
    config = json.loads(Path(tiny_model, "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_masked_language_models_and_bin_files_load(form: str, tmp_path: Path) -> None:
    config = XLMRobertaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                              intermediate_size=16, max_position_embeddings=20)  # fmt: skip
    torch.manual_seed(1)
    source = XLMRobertaForMaskedLM(config)
    with quiet_transformers():
        source.save_pretrained(tmp_path)
    if form == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    model = load_model(str(tmp_path))
    assert not model.heads_trained
    for key, value in source.roberta.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    assert torch.equal(model.colbert_linear.weight, load_model(str(tmp_path)).colbert_linear.weight)


def test_the_dtype_asked_for_wins_over_the_checkpoint_s(copy: Path) -> None:
    half = {key: value.half() for key, value in load_file(copy / "model.safetensors").items()}
    save_file(half, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    assert {p.dtype for p in load_model(str(copy)).parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(str(copy), dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_bert_loads(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=20)  # fmt: skip
    with quiet_transformers():
        BertModel(config).save_pretrained(tmp_path)  # with its pooler, as BERT checkpoints come
    assert load_model(str(tmp_path)).max_length == 20


def test_heads_of_another_width_and_without_a_note_count_as_trained(copy: Path) -> None:
    (copy / "chuxin.json").unlink()
    torch.save({"weight": torch.ones(8, 32), "bias": torch.zeros(8)}, copy / "colbert_linear.pt")
    model = load_model(str(copy))
    assert model.heads_trained
    assert model.colbert_linear.out_features == 8


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(lambda: load_model(str(tmp_path / "none")), "none", "no such model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(lambda: load_model("chuxin-tests/none"), "chuxin-tests/none", "the hub does not give it")
    assert_refused(lambda: load_model(str(tmp_path)), "config.json", "cannot be read")


def test_weights_that_do_not_fit(copy: Path) -> None:
    file = copy / "model.safetensors"
    good = load_file(file)
    key = "encoder.layer.1.output.dense.weight"

    def write(state: dict) -> None:
        save_file(state, file, metadata={"format": "pt"})

    write({k: v for k, v in good.items() if k != key})
    assert_refused(lambda: load_model(str(copy)), "model.safetensors", key, "missing")
    write({**good, key: torch.zeros(3, 3)})
    assert_refused(lambda: load_model(str(copy)), "model.safetensors", key, "(3, 3)", "(32, 64)")
    write({**good, "encoder.layer.2.output.dense.weight": torch.zeros(32, 64)})
    assert_refused(lambda: load_model(str(copy)), "model.safetensors", "encoder.layer.2.output.dense.weight")
    file.write_bytes(file.read_bytes()[:5000])
    assert_refused(lambda: load_model(str(copy)), "model.safetensors", "cannot be read")
    file.unlink()
    assert_refused(lambda: load_model(str(copy)), "model.safetensors", "no weights")
    (copy / "pytorch_model.bin").write_bytes(b"junk")
    assert_refused(lambda: load_model(str(copy)), "pytorch_model.bin", "cannot be read")


def test_heads_that_do_not_fit(copy: Path) -> None:
    def put(name: str, state: object) -> None:
        torch.save(state, copy / name)

    put("sparse_linear.pt", {"weight": torch.zeros(1, 32), "b": torch.zeros(1)})
    assert_refused(lambda: load_model(str(copy)), "sparse_linear.pt", "weight and bias")
    put("sparse_linear.pt", {"weight": torch.zeros(1, 16), "bias": torch.zeros(1)})
    assert_refused(lambda: load_model(str(copy)), "sparse_linear.pt", "(1, 16)")
    put("sparse_linear.pt", {"weight": torch.zeros(2, 32), "bias": torch.zeros(2)})
    assert_refused(lambda: load_model(str(copy)), "sparse_linear.pt", "(2, 32)")
    (copy / "sparse_linear.pt").write_bytes(b"junk")
    assert_refused(lambda: load_model(str(copy)), "sparse_linear.pt", "cannot be read")
    # FlagEmbedding draws both heads in silence when one file is missing
    (copy / "sparse_linear.pt").unlink()
    assert_refused(lambda: load_model(str(copy)), "sparse_linear.pt", "missing")


def test_another_architecture(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert_refused(lambda: load_model(str(copy)), "config.json", "gpt2")
    (copy / "config.json").write_text("{")
    assert_refused(lambda: load_model(str(copy)), "config.json", "cannot be read")


def test_tokenizers(tiny_model: str, copy: Path) -> None:
    text = "医生在北京写一篇文章"
    assert (
        load_tokenizer(tiny_model)(text)["input_ids"]
        == AutoTokenizer.from_pretrained(tiny_model)(text)["input_ids"]
    )
    (copy / "tokenizer.json").write_text("{}")
    assert_refused(lambda: load_tokenizer(str(copy)), "tokenizer.json", "cannot be read")
    (copy / "tokenizer.json").unlink()
    assert_refused(lambda: load_tokenizer(str(copy)), "tokenizer.json", "no tokenizer")


def test_an_xlm_r_tokenizer_survives(tiny_model: str, tmp_path: Path) -> None:
    # transformers rebuilds this class from the vocabulary instead of following tokenizer.json
    entries = json.loads(load_tokenizer(tiny_model).backend_tokenizer.to_str())["model"]["vocab"]
    source = XLMRobertaTokenizer(vocab=[tuple(entry) for entry in entries])
    save_model(load_model(tiny_model), source, str(tmp_path))
    text = "医生在北京 writes 𠮷"
    ids = source(text)["input_ids"]
    assert ids[1] == source.convert_tokens_to_ids("▁") and 3 in ids
    assert load_tokenizer(str(tmp_path))(text)["input_ids"] == ids
