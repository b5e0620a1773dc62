"""Writes a release: one directory that FlagEmbedding, sentence-transformers and transformers all load.

To the files of a training checkpoint (models/checkpoint.py) it adds what sentence-transformers reads
(modules.json, 1_Pooling, sentence_bert_config.json, config_sentence_transformers.json) and the model card.
Leaves out: quantised weights, other runtimes' formats, uploading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from chuxin.errors import InputError
from chuxin.models.checkpoint import NOTE_FILE, save_model
from chuxin.models.encoder import M3Model

# Module names as all versions of sentence-transformers know them, 6.2 included.
MODULES = (
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
)


def export(
    model: M3Model,
    tokenizer: PreTrainedTokenizerFast,
    directory: str,
    max_len: int,
    card: str,
    note: Mapping[str, Any],
) -> None:
    """Writes the release.

    Args:
        model: In the dtype the release shall have.
        tokenizer: Its tokenizer; `model_max_length` becomes `max_len`.
        directory: A local directory, of the caller's own.
        max_len: See ReleaseConfig.
        card: Text of README.md.
        note: Joins chuxin.json.

    Raises:
        InputError: The model cannot take `max_len` tokens.
    """  # fmt: skip
    if not 2 < max_len <= model.max_length:
        problem = f"the model takes 3 to {model.max_length} tokens, not {max_len}"
        raise InputError("release.max_len", problem, "Lower it")
    tokenizer.model_max_length = max_len
    save_model(model, tokenizer, directory)
    root = Path(directory)
    _add_pooler(model, root / "model.safetensors")
    _write_json(root / "modules.json", MODULES)
    _write_json(root / "1_Pooling" / "config.json", _pooling(model.hidden))
    _write_json(root / "sentence_bert_config.json", {"max_seq_length": max_len, "do_lower_case": False})
    _write_json(root / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})
    written = json.loads((root / NOTE_FILE).read_text(encoding="utf-8"))
    _write_json(root / NOTE_FILE, {**written, "max_length": max_len, **note})
    (root / "README.md").write_text(card, encoding="utf-8")


def _pooling(hidden: int) -> dict[str, Any]:
    others = ("mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {
        "word_embedding_dimension": hidden,
        "pooling_mode_cls_token": True,
        **{f"pooling_mode_{name}": False for name in others},
        "include_prompt": True,
    }


def _add_pooler(model: M3Model, file: Path) -> None:
    """Adds a pooler of zeros to the weights.

    No reader uses it, but they build the backbone through AutoModel, which would draw a pooler and warn that
    the model needs training.
    """
    weight = model.backbone.embeddings.word_embeddings.weight
    zeros = {
        "pooler.dense.weight": torch.zeros(model.hidden, model.hidden, dtype=weight.dtype),
        "pooler.dense.bias": torch.zeros(model.hidden, dtype=weight.dtype),
    }
    state = {key: value.detach().cpu().contiguous() for key, value in model.backbone.state_dict().items()}
    save_file({**state, **zeros}, file, metadata={"format": "pt"})
    file.chmod(0o644)


def _write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
