"""The cross-encoder: query and passage in one text, one score; in the layout of XLMRobertaForSequenceClassification.

A directory saved here loads in `AutoModelForSequenceClassification` and FlagEmbedding's `FlagReranker`, and theirs
(bge-reranker-base, -large, -v2-m3) load here. A pair is `<s> query </s></s> passage </s>`, packed without padding.
Leaves out: BERT (its classifier is another), rerankers on language models, dropout in the classifier.

Shapes: N pairs, H width.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chuxin.errors import InputError
from chuxin.models import packed as packing
from chuxin.models.checkpoint import NOTE_FILE, WEIGHT_FILES, load_model, name_tokenizer_class
from chuxin.models.dropout import Dropout
from chuxin.models.location import local_directory, written_directory
from chuxin.models.packed import Packed

ARCHITECTURE = "XLMRobertaForSequenceClassification"


def pair_ids(query_ids: Sequence[int] | np.ndarray, passage_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Joins two texts that each have their special tokens: `<s> q </s>` and `<s> p </s>` → `<s> q </s></s> p </s>`.

    *Relations*: what a tokenizer of XLM-R makes of the pair.
    """
    return np.concatenate([query_ids, query_ids[-1:], passage_ids[1:]])


def load_reranker(
    path: str, seed: int | None = None, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> CrossEncoder:
    """Reads a cross-encoder, in evaluation mode.

    Args:
        path: A directory, a URI or a hub name: a reranker, or with `seed` also any XLM-R or M3 model.
        seed: Of the classifier where the directory has none; None refuses such a directory.
        dtype: What the weights become, whatever the checkpoint holds.
        device: Where the weights go.

    Raises:
        InputError: There is no such model, it is no XLM-R or has no classifier of one label, or its weights are
            damaged; names the file.
    """
    directory = Path(local_directory(path))
    backbone = load_model(str(directory)).backbone
    if backbone.config.model_type != "xlm-roberta":
        problem = f"model_type {backbone.config.model_type!r} is not supported for rerankers"
        raise InputError(str(directory / "config.json"), problem, "Use a model of type xlm-roberta")
    classifier = Classifier(backbone.config.hidden_size)
    weights, state = _classifier_state(directory)
    if not state and seed is None:
        remedy = "Give a reranker, such as the artifact of a reranker stage or BAAI/bge-reranker-v2-m3"
        raise InputError(str(weights), "the model has no classifier, so it is no reranker", remedy)
    if not state:
        classifier.draw(seed, backbone.config.initializer_range)
    else:
        _require_shapes(weights, classifier, state)
        classifier.load_state_dict(state)
    return CrossEncoder(backbone, classifier).to(dtype).to(device).eval()


def save_reranker(model: CrossEncoder, tokenizer: PreTrainedTokenizerFast, path: str) -> None:
    """Writes a model directory that `load_reranker` reads back to the bit.

    Args:
        model: The model; weights are written in the dtype they have.
        tokenizer: Its tokenizer.
        path: A local directory or URI, of the caller's own: nothing is removed from it.
    """
    config = copy.deepcopy(model.backbone.config)
    config.architectures, config.num_labels = [ARCHITECTURE], 1
    config.dtype = next(model.parameters()).dtype
    with written_directory(path) as local:
        directory = Path(local)
        config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        name_tokenizer_class(directory / "tokenizer_config.json")
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        save_file(state, directory / WEIGHT_FILES[0], metadata={"format": "pt"})
        (directory / WEIGHT_FILES[0]).chmod(0o644)
        note = {"max_length": model.max_length}
        (directory / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _classifier_state(directory: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Returns the weights' file and what it holds of a classifier, keys without their prefix."""
    weights = next(directory / name for name in WEIGHT_FILES if (directory / name).is_file())
    files = [weights]
    if weights.suffix == ".json":
        placed = json.loads(weights.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({directory / file for key, file in placed.items() if key.startswith("classifier.")})
    state: dict[str, torch.Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                state |= {key: opened.get_tensor(key) for key in opened.keys() if key.startswith("classifier.")}
        else:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            state |= {key: value for key, value in found.items() if key.startswith("classifier.")}
    return weights, {key.removeprefix("classifier."): value for key, value in state.items()}


def _require_shapes(weights: Path, classifier: Classifier, state: dict[str, torch.Tensor]) -> None:
    wanted = {key: tuple(value.shape) for key, value in classifier.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in wanted | found if wanted.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        problem = f"classifier.{key} has shape {found.get(key, 'none')}, a reranker's has {wanted.get(key, 'none')}"
        raise InputError(str(weights), problem, "Give a reranker of one label, with a dense and an out_proj layer")


class Classifier(nn.Module):
    """First state → score: dense, tanh, out_proj, named as in `XLMRobertaClassificationHead`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, 1)

    def draw(self, seed: int, std: float) -> None:
        """Draws the weights, leaving torch's global generator alone."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for linear in (self.dense, self.out_proj):
                linear.weight.normal_(0.0, std, generator=generator)
                linear.bias.zero_()

    def forward(self, first_NH: torch.Tensor) -> torch.Tensor:
        """Returns scores [N]."""
        return self.out_proj(torch.tanh(self.dense(first_NH))).squeeze(-1)


class CrossEncoder(nn.Module):
    """An XLM-R backbone and a classifier of one label.

    Args:
        backbone: `XLMRobertaModel` without its pooling layer.
        classifier: Of its width.

    *Relations*: equals `XLMRobertaForSequenceClassification` in evaluation mode (1e-5 in fp32), keys of the state
    included.
    """

    def __init__(self, backbone: PreTrainedModel, classifier: Classifier) -> None:
        super().__init__()
        self.roberta = backbone
        self.classifier = classifier
        self.checkpointing = False
        """Compute activations again in the backward pass instead of keeping them."""

    @property
    def backbone(self) -> PreTrainedModel:
        """The backbone, by the name it has in the M3 encoder."""
        return self.roberta

    @property
    def max_length(self) -> int:
        """The most tokens a pair may have, its four special ones included."""
        return packing.position_count(self.roberta)

    def forward(self, packed: Packed, dropout: Dropout | None = None) -> torch.Tensor:
        """Returns the scores [N] of packed pairs, fp32; higher is more relevant. The classifier computes in fp32."""
        hidden_TH = packing.encode(self.roberta, packed, dropout, self.checkpointing)
        return self._classified(hidden_TH[packed.bounds_N1[:-1].long()])

    def score(self, packed: Packed) -> torch.Tensor:
        """Returns the same scores, for inference: see `packed.encode_first`."""
        return self._classified(packing.encode_first(self.roberta, packed))

    def _classified(self, first_NH: torch.Tensor) -> torch.Tensor:
        with torch.autocast(first_NH.device.type, enabled=False):
            return self.classifier(first_NH.to(self.classifier.dense.weight.dtype)).float()
