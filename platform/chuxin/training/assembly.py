"""From a config to what a worker trains: the model it loads, the module the engine wraps, the objective, the export.

Leaves out: the engine (deepspeed.py), where it runs (worker.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from chuxin.errors import InputError
from chuxin.files import filesystem
from chuxin.models.checkpoint import load_model, load_tokenizer, save_model
from chuxin.models.location import local_directory
from chuxin.models.packed import Packed
from chuxin.models.reranker import CrossEncoder, load_reranker, save_reranker
from chuxin.models.retromae import RetroMAE
from chuxin.models.retromae_masks import Drawing
from chuxin.models.vocabulary import NEEDED, ids_without_weight, require_special_tokens, vocabulary_fingerprint
from chuxin.training.config import FinetuneConfig, PretrainConfig, RerankerConfig, TrainingConfig
from chuxin.training.dev import Score, dev_score, rerank_score
from chuxin.training.finetune import Contrastive, freeze_heads
from chuxin.training.objective import Objective
from chuxin.training.plan_checks import check_fits
from chuxin.training.plan_reader import Plan
from chuxin.training.pretrain import Rebuild
from chuxin.training.rerank import Listwise
from chuxin.training.speed import Work, measure_work

EXTRA_FILE = "retromae.pt"
"""Decoder and head of a pretraining, beside the model they were trained with."""


class Assembly(NamedTuple):
    """What is trained, before an engine is around it."""

    model: nn.Module
    """What is exported: an M3 model or a cross-encoder."""
    module: nn.Module
    """What the engine wraps: the model, in pretraining with its decoder."""
    tokenizer: PreTrainedTokenizerFast
    score: Score | None
    """Of the dev benchmark."""
    work: Work

    def tied(self) -> list[nn.Parameter]:
        """Parameters that a module's forward pass takes from a submodule it does not call (see deepspeed.py)."""
        embeddings = self.model.backbone.embeddings
        tables = [embeddings.token_type_embeddings.weight]
        return [*tables, embeddings.word_embeddings.weight] if isinstance(self.module, RetroMAE) else tables


def assemble(
    config: TrainingConfig, path: str, plan: Plan, plan_uri: str, dev: str | None, device: torch.device
) -> Assembly:
    """Loads the model and checks that plan and benchmark fit it.

    Args:
        config: Of the stage.
        path: The starting model, local or a URI.
        plan: What will be trained on.
        plan_uri: Named in errors.
        dev: Local folder of the dev benchmark, if any.
        device: Of this worker.

    Raises:
        InputError: Something of these is missing or does not fit another.
    """
    reranking = isinstance(config, RerankerConfig)
    model = load_reranker(path, config.seed, device=device) if reranking else load_model(path, device=device)
    tokenizer = load_tokenizer(path)
    require_special_tokens(tokenizer, path, (*NEEDED, "mask") if isinstance(config, PretrainConfig) else NEEDED)
    vocab_size = model.backbone.config.vocab_size
    check_fits(plan, plan_uri, vocabulary_fingerprint(tokenizer), vocab_size, model.max_length, reranking)
    if isinstance(config, FinetuneConfig) and config.heads == "all":
        model.heads_trained = True
    elif not reranking:
        freeze_heads(model)
    model.checkpointing = config.execution.activation_checkpointing
    score = None
    if dev is not None:
        prepare = rerank_score if reranking else dev_score
        budget = config.execution.micro_batch_tokens
        score = prepare(dev, config.dev, tokenizer, model.max_length, budget, device)
    module = _retromae(config, path, model) if isinstance(config, PretrainConfig) else model
    backbone = model.backbone.config
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    work = measure_work(module, backbone.num_hidden_layers, backbone.hidden_size, dtype)
    return Assembly(model, module, tokenizer, score, work)


def new_objective(config: TrainingConfig, assembly: Assembly, engine: Callable[..., Any], plan: Plan) -> Objective:
    """Builds the config's objective around an engine; plan and model have been found to serve it."""
    tokenizer = assembly.tokenizer
    if isinstance(config, RerankerConfig):
        return Listwise(engine, config, plan, assembly.model.max_length)
    if isinstance(config, FinetuneConfig):
        return Contrastive(engine, config, plan, ids_without_weight(tokenizer))
    drawing = Drawing(
        config.seed, config.encoder_mlm_probability, config.decoder_mlm_probability,
        assembly.model.backbone.config.vocab_size, tokenizer.mask_token_id, tuple(sorted(tokenizer.all_special_ids)),
    )  # fmt: skip
    return Rebuild(engine, drawing, config.execution.micro_batch_tokens, plan.sources)


def scored_output(config: TrainingConfig, engine: Callable[..., Any]) -> Callable[[Packed], torch.Tensor]:
    """Returns what the dev score runs: dense vectors, or a cross-encoder's scores."""
    if isinstance(config, RerankerConfig):
        return lambda packed: engine(packed, None)
    return lambda packed: engine(packed, False, None).dense_NH


def export(assembly: Assembly, uri: str) -> None:
    """Writes the model's directory; its weights are whole."""
    if isinstance(assembly.model, CrossEncoder):
        save_reranker(assembly.model, assembly.tokenizer, uri)
        return
    save_model(assembly.model, assembly.tokenizer, uri)
    if isinstance(assembly.module, RetroMAE):
        fs, path = filesystem(uri)
        with fs.open(f"{path}/{EXTRA_FILE}", "wb") as file:
            torch.save({key: value.cpu() for key, value in assembly.module.extra_state_dict().items()}, file)


def _retromae(config: PretrainConfig, path: str, model: nn.Module) -> RetroMAE:
    module = RetroMAE(model, config.seed, config.dropout)
    extra = Path(local_directory(path)) / EXTRA_FILE
    if extra.is_file():
        try:
            module.load_extra_state_dict(torch.load(extra, map_location="cpu", weights_only=True))
        except Exception as error:  # on damaged bytes the unpickler raises whatever it stumbles over
            problem = f"the decoder's weights cannot be read ({str(error).strip().splitlines()[0].rstrip('.:')})"
            raise InputError(str(extra), problem, "Remove the file, or take the model it was written with") from error
    return module.to(next(model.parameters()).device)
