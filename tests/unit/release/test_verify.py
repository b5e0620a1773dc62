import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer, save_model
from chuxin.release.export import export
from chuxin.release.verify import verify


@pytest.fixture
def release(tiny_model: str, tmp_path: Path) -> Path:
    export(
        load_model(tiny_model),
        load_tokenizer(tiny_model),
        str(tmp_path / "release"),
        50,
        "",
        {"name": "tiny"},
    )
    return tmp_path / "release"


@pytest.fixture
def trained(tiny_model: str, tmp_path: Path) -> tuple[str, Path]:
    """A checkpoint with trained heads, and its release."""
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    with torch.no_grad():
        model.sparse_linear.weight.mul_(30)
        model.sparse_linear.bias.fill_(0.3)
    model.heads_trained = True
    save_model(model, tokenizer, str(tmp_path / "checkpoint"))
    export(model, tokenizer, str(tmp_path / "trained"), 50, "", {})
    return str(tmp_path / "checkpoint"), tmp_path / "trained"


def test_both_libraries_agree_with_the_checkpoint(tiny_model: str, release: Path) -> None:
    facts = verify(tiny_model, str(release), 50)
    assert facts.keys() == {"least_cosine_flagembedding", "least_cosine_sentence_transformers"}
    assert all(0.999999 < cosine < 1.000001 for cosine in facts.values())


def test_trained_heads_are_compared_too(trained: tuple[str, Path]) -> None:
    facts = verify(trained[0], str(trained[1]), 50)
    differences = [value for name, value in facts.items() if name.startswith("greatest_difference_")]
    assert len(differences) == 2 and all(0 < value < 1e-5 for value in differences)
    assert load_model(str(trained[1])).heads_trained


@pytest.mark.parametrize(
    ("file", "problem"), [("sparse_linear.pt", "a lexical weight differs"), ("colbert_linear.pt", "a multi-vector")]
)
def test_another_head_is_found(trained: tuple[str, Path], file: str, problem: str) -> None:
    state = torch.load(trained[1] / file, weights_only=True)
    torch.save({**state, "bias": state["bias"] + 0.01}, trained[1] / file)
    with pytest.raises(InputError, match=f"in flagembedding: {problem}"):
        verify(trained[0], str(trained[1]), 50)


def test_another_pooling_is_found(tiny_model: str, release: Path) -> None:
    pooling = json.loads((release / "1_Pooling/config.json").read_text())
    pooling |= {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (release / "1_Pooling/config.json").write_text(json.dumps(pooling))
    with pytest.raises(InputError, match="in sentence_transformers: cosine"):
        verify(tiny_model, str(release), 50)


def test_other_weights_are_found(tiny_model: str, release: Path) -> None:
    state = load_file(release / "model.safetensors")
    state["encoder.layer.0.attention.self.value.weight"] += 0.05 * torch.randn(32, 32)
    save_file(state, release / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="in flagembedding: cosine"):
        verify(tiny_model, str(release), 50)
