from pathlib import Path

import fsspec
import pytest
import torch

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer, save_model
from chuxin.models.location import local_directory, read_file, written_directory


def test_a_model_goes_to_a_uri_and_comes_back(tiny_model: str) -> None:
    uri = "memory://models/tiny"
    save_model(load_model(tiny_model), load_tokenizer(tiny_model), uri)
    assert fsspec.filesystem("memory").exists("/models/tiny/model.safetensors")
    again = load_model(uri)
    assert all(
        torch.equal(a, b)
        for a, b in zip(load_model(tiny_model).parameters(), again.parameters(), strict=True)
    )
    assert local_directory(uri) == local_directory(uri), "one copy a process"
    assert read_file(uri, "config.json") == read_file(tiny_model, "config.json")
    with pytest.raises(InputError, match="its none.json cannot be had"):
        read_file(uri, "none.json")
    with pytest.raises(InputError, match="no such model"):
        load_model("memory://models/none")


def test_nothing_is_uploaded_when_writing_fails() -> None:
    with pytest.raises(RuntimeError), written_directory("memory://models/failed") as local:
        Path(local, "half").write_text("x")
        raise RuntimeError
    assert not fsspec.filesystem("memory").exists("/models/failed")


def test_what_ships_with_the_package_is_found_from_anywhere() -> None:
    found = Path(local_directory("package:release"))
    assert found.name == "release" and (found / "merge.py").is_file()
    with pytest.raises(InputError, match="there is no such model directory"):
        local_directory("package:nowhere")
