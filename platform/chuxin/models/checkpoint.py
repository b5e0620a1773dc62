"""Reads and writes model directories: Hugging Face's files, FlagEmbedding's two head files, `chuxin.json`.

A directory holds config.json, model.safetensors (backbone keys without prefix), the tokenizer's files,
sparse_linear.pt and colbert_linear.pt (FlagEmbedding's names and keys) and chuxin.json. Reading takes any
XLM-R or BERT directory: with or without heads, with the prefix of a masked language model, `.bin` weights.
Leaves out: optimizer and scheduler state (training/checkpoint.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaModel,
)  # fmt: skip
from transformers.utils import logging

from chuxin.errors import InputError
from chuxin.models.encoder import M3Model, new_heads
from chuxin.models.location import local_directory, written_directory

BACKBONES: dict[str, type[PreTrainedModel]] = {"xlm-roberta": XLMRobertaModel, "bert": BertModel}
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SPARSE_FILE, COLBERT_FILE, NOTE_FILE = "sparse_linear.pt", "colbert_linear.pt", "chuxin.json"


def load_model(path: str, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> M3Model:
    """Reads a model, in evaluation mode. The heads are drawn from a fixed seed where the directory has none.

    Args:
        path: A directory, a URI or a hub name.
        dtype: What the weights become, whatever the checkpoint holds.
        device: Where the weights go.

    Raises:
        InputError: There is no such model, it is neither XLM-R nor BERT, or its weights are damaged or do not
            fit its config; names the file and the first key.
    """
    directory = Path(local_directory(path))
    backbone = _load_backbone(directory, dtype)
    sparse, colbert, trained = _load_heads(directory, backbone)
    return M3Model(backbone, sparse.to(dtype), colbert.to(dtype), trained).to(device).eval()


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Reads the tokenizer of a model directory, URI or hub name.

    Raises:
        InputError: There is no tokenizer, or its file is damaged.
    """
    directory = Path(local_directory(path))
    file = directory / "tokenizer.json"
    remedy = "Point to a directory saved by save_pretrained with a fast tokenizer"
    if not any(
        (directory / name).is_file() for name in ("tokenizer.json", "sentencepiece.bpe.model", "vocab.txt")
    ):
        raise InputError(str(file), "the model directory has no tokenizer", remedy)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory))
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise InputError(str(file), f"the tokenizer cannot be read ({_first_line(error)})", remedy) from error
    if not tokenizer.is_fast:
        raise InputError(str(file), "the tokenizer is not a fast one", remedy)
    return tokenizer


def save_model(model: M3Model, tokenizer: PreTrainedTokenizerFast, path: str) -> None:
    """Writes a model directory (see the module's text) that `load_model` reads back to the bit.

    Args:
        model: The model; weights are written in the dtype they have.
        tokenizer: Its tokenizer.
        path: A local directory or URI, of the caller's own: nothing is removed from it.
    """
    with written_directory(path) as local:
        directory = Path(local)
        with quiet_transformers():
            model.backbone.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        name_tokenizer_class(directory / "tokenizer_config.json")
        for name, head in ((SPARSE_FILE, model.sparse_linear), (COLBERT_FILE, model.colbert_linear)):
            torch.save(
                {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()},
                directory / name,
            )
        note = {"heads_trained": model.heads_trained, "max_length": model.max_length}
        (directory / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def name_tokenizer_class(file: Path) -> None:
    """Replaces transformers 5's name for "as tokenizer.json says" by the one that version 4 knows too."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("is_local", "local_files_only"):  # how it was loaded, not what it is
        config.pop(key, None)
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' own loading reports: what they warn of is raised here as an error."""
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load_backbone(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    config_file = directory / "config.json"
    try:
        config = AutoConfig.from_pretrained(str(directory))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"the model's config cannot be read ({_first_line(error)})"
        raise InputError(
            str(config_file), problem, "Point to a directory saved by save_pretrained"
        ) from error
    if config.model_type not in BACKBONES:
        problem = f"model_type {config.model_type!r} is not supported"
        raise InputError(str(config_file), problem, f"Use a model of type {' or '.join(BACKBONES)}")
    weights = next((directory / name for name in WEIGHT_FILES if (directory / name).is_file()), None)
    if weights is None:
        where = str(directory / WEIGHT_FILES[0])
        raise InputError(
            where, "the model directory has no weights", "Fetch model.safetensors or pytorch_model.bin"
        )
    remedy = "Fetch or write the model again; its files are incomplete or belong to another config"
    try:
        with quiet_transformers():
            backbone, info = BACKBONES[config.model_type].from_pretrained(
                str(directory), config=config, dtype=dtype, add_pooling_layer=False,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except (
        Exception
    ) as error:  # on damaged bytes the unpickler raises whatever it stumbles over, struct.error too
        raise InputError(
            str(weights), f"the weights cannot be read ({_first_line(error)})", remedy
        ) from error
    _refuse_misfits(str(weights), info, remedy)
    return backbone


def _refuse_misfits(where: str, info: dict, remedy: str) -> None:
    """Transformers draws missing and mismatching weights anew and goes on; a retrieval model must not."""
    if info["mismatched_keys"]:
        key, found, wanted = min(info["mismatched_keys"])
        problem = f"{key} has shape {tuple(found)}, the config wants {tuple(wanted)}"
        raise InputError(where, problem, remedy)
    if info["missing_keys"]:
        raise InputError(where, f"{min(info['missing_keys'])} is missing", remedy)
    # Poolers and language-model heads are no part of an M3 model; a layer unknown to the config is an error.
    layers = sorted(key for key in info["unexpected_keys"] if "encoder.layer." in key)
    if layers:
        raise InputError(where, f"{layers[0]} has no place in the config's model", remedy)


def _load_heads(directory: Path, backbone: PreTrainedModel) -> tuple[nn.Linear, nn.Linear, bool]:
    hidden, std = backbone.config.hidden_size, backbone.config.initializer_range
    files = [directory / SPARSE_FILE, directory / COLBERT_FILE]
    present = [file.is_file() for file in files]
    if not any(present):
        return *new_heads(hidden, hidden, std), False
    if not all(present):
        missing = files[present.index(False)]
        raise InputError(str(missing), "one of the two head files is missing", "Fetch both or remove both")
    sparse_state, colbert_state = (_load_head_state(file, hidden) for file in files)
    if sparse_state["weight"].shape[0] != 1:
        shape = tuple(sparse_state["weight"].shape)
        raise InputError(
            str(files[0]), f"weight has shape {shape}, not (1, {hidden})", "Fetch the head again"
        )
    sparse, colbert = new_heads(hidden, colbert_state["weight"].shape[0], std)
    sparse.load_state_dict(sparse_state)
    colbert.load_state_dict(colbert_state)
    note = directory / NOTE_FILE
    trained = json.loads(note.read_text(encoding="utf-8"))["heads_trained"] if note.is_file() else True
    return sparse, colbert, bool(trained)


def _load_head_state(file: Path, hidden: int) -> dict[str, torch.Tensor]:
    remedy = f"Write it with torch.save of a Linear's state: weight [n, {hidden}] and bias [n]"
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # see _load_backbone
        raise InputError(str(file), f"the head cannot be read ({_first_line(error)})", remedy) from error
    if not isinstance(state, dict) or set(state) != {"weight", "bias"}:
        raise InputError(str(file), "the keys are not weight and bias", remedy)
    weight, bias = state["weight"], state["bias"]
    if weight.ndim != 2 or weight.shape[1] != hidden or bias.shape != weight.shape[:1]:
        problem = f"weight has shape {tuple(weight.shape)} and bias {tuple(bias.shape)}"
        raise InputError(str(file), problem, remedy)
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
