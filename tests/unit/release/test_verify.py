import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer
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


def test_both_libraries_agree_with_the_checkpoint(tiny_model: str, release: Path) -> None:
    cosines = verify(tiny_model, str(release), 50)
    assert cosines.keys() == {"flagembedding", "sentence_transformers"}
    assert all(0.999999 < cosine < 1.000001 for cosine in cosines.values())


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
