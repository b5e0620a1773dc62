import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer
from chuxin.release.export import export


@pytest.fixture
def release(tiny_model: str, tmp_path: Path) -> Path:
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    export(model, tokenizer, str(tmp_path / "release"), 50, "# card\n", {"name": "tiny"})
    return tmp_path / "release"


def test_every_file_a_reader_needs(release: Path) -> None:
    names = {str(p.relative_to(release)) for p in release.rglob("*") if p.is_file()}
    assert names == {
        "README.md",
        "chuxin.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "sparse_linear.pt",
        "colbert_linear.pt",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    }
    note = json.loads((release / "chuxin.json").read_text())
    assert note == {"heads_trained": False, "max_length": 50, "name": "tiny"}
    assert json.loads((release / "tokenizer_config.json").read_text())["model_max_length"] == 50
    assert oct((release / "model.safetensors").stat().st_mode)[-3:] == "644"


def test_transformers_finds_every_weight(release: Path) -> None:
    _, info = AutoModel.from_pretrained(str(release), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_it_loads_again_as_a_checkpoint(release: Path, tiny_model: str) -> None:
    expected, found = load_model(tiny_model).state_dict(), load_model(str(release)).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_more_tokens_than_positions_are_refused(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes 3 to 64 tokens, not 65"):
        export(load_model(tiny_model), load_tokenizer(tiny_model), str(tmp_path), 65, "", {})
