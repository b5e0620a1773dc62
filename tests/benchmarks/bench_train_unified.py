"""A training step of all three heads with self-distillation: chuxin's packed step against FlagEmbedding's M3 model.

A small XLM-R with random weights and M3's vocabulary, and texts of two fixed lengths, so that padding plays no part. A
step is forward pass, loss and backward pass, as the finetune stage runs them, with gradients thrown away before; both
sides get ready batches. Equal means: the loss and every gradient, element by element, within 1e-4.
"""

import copy
import functools
import types

import numpy as np
import torch

SETTINGS = {
    "queries": 4, "group_size": 4, "query_tokens": 16, "passage_tokens": 64, "vocabulary": 250_002, "layers": 2,
    "hidden": 64, "heads": 4, "intermediate": 256, "temperature": 0.02, "self_distillation": True, "dropout": 0.0,
    "initializer_range": 0.02, "dtype": "float32", "threads": 1, "seed": 3,
}  # fmt: skip
SPECIAL = {"cls_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "unk_token_id": 3}
SHARED = 500
"""Texts are drawn from so many tokens, so that queries and passages share some and all kinds of scores differ."""


@functools.cache
def token_ids() -> tuple[np.ndarray, np.ndarray]:
    """Queries [B, 16] and passages [B · G, 64]."""
    rng = np.random.default_rng(SETTINGS["seed"])
    words = rng.choice(np.arange(4, SETTINGS["vocabulary"]), SHARED, replace=False)
    queries, passages = SETTINGS["queries"], SETTINGS["queries"] * SETTINGS["group_size"]
    shapes = ((queries, SETTINGS["query_tokens"]), (passages, SETTINGS["passage_tokens"]))
    texts = tuple(rng.choice(words, shape) for shape in shapes)
    for side in texts:
        side[:, 0], side[:, -1] = SPECIAL["cls_token_id"], SPECIAL["eos_token_id"]
    return texts


@functools.cache
def backbone():
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.set_num_threads(SETTINGS["threads"])
    torch.manual_seed(SETTINGS["seed"])
    config = XLMRobertaConfig(
        vocab_size=SETTINGS["vocabulary"], hidden_size=SETTINGS["hidden"], num_hidden_layers=SETTINGS["layers"],
        num_attention_heads=SETTINGS["heads"], intermediate_size=SETTINGS["intermediate"],
        initializer_range=SETTINGS["initializer_range"], type_vocab_size=1,
        max_position_embeddings=SETTINGS["passage_tokens"] + 2, hidden_dropout_prob=SETTINGS["dropout"],
        attention_probs_dropout_prob=SETTINGS["dropout"],
    )  # fmt: skip
    return XLMRobertaModel(config, add_pooling_layer=False).train()


@functools.cache
def our_model():
    from chuxin.models.encoder import M3Model, new_heads

    heads = new_heads(SETTINGS["hidden"], SETTINGS["hidden"], std=SETTINGS["initializer_range"])
    return M3Model(copy.deepcopy(backbone()), *heads, heads_trained=False).train()


@functools.cache
def their_model():
    from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model

    parts = {"model": copy.deepcopy(backbone()), "colbert_linear": copy.deepcopy(our_model().colbert_linear),
             "sparse_linear": copy.deepcopy(our_model().sparse_linear)}  # fmt: skip
    return EncoderOnlyEmbedderM3Model(
        parts, tokenizer=types.SimpleNamespace(**SPECIAL, padding_side="right"), temperature=SETTINGS["temperature"],
        normalize_embeddings=True, unified_finetuning=True, use_self_distill=SETTINGS["self_distillation"],
    ).train()  # fmt: skip


@functools.cache
def prepared_step():
    """The objective, and the batch as its reader's thread would hand it over; theirs gets ready tensors too."""
    import pyarrow as pa

    from chuxin.schema import PLAN_GROUPS
    from chuxin.training.config import FinetuneConfig, OptimizerConfig
    from chuxin.training.finetune import Contrastive
    from chuxin.training.plan_reader import Batch, Plan

    group_size, (queries, passages) = SETTINGS["group_size"], token_ids()
    rows = []
    for row, query in enumerate(queries):
        own = range(row * group_size, (row + 1) * group_size)
        rows.append({
            "epoch": 0, "batch": 0, "slice": 0, "row": row, "query_id": row, "source": "drawn", "query_hash": -1 - row,
            "query_ids": query.tolist(), "lengths": [len(query), *(len(passages[i]) for i in own)],
            "passages": [{"passage_id": i, "text_hash": i, "token_ids": passages[i].tolist(), "score": None}
                         for i in own],
        })  # fmt: skip
    lengths = np.concatenate([row["lengths"] for row in rows]).astype(np.int64)
    texts = np.array([len(row["lengths"]) for row in rows], np.int64)
    batch = Batch(1, 0, 0, len(rows), pa.Table.from_pylist(rows, PLAN_GROUPS), (lengths,), (texts,))
    config = FinetuneConfig(
        "", "", OptimizerConfig(learning_rate=1e-5, warmup_steps=0), seed=SETTINGS["seed"], dtype="fp32",
        temperature=SETTINGS["temperature"], heads="all", self_distill_from=1, dropout=SETTINGS["dropout"],
    )  # fmt: skip
    plan = Plan((), 1, SETTINGS["vocabulary"] - 1, int(lengths.max()), "", ("drawn",))
    objective = Contrastive(our_model(), config, plan, tuple(SPECIAL.values()))
    return objective, objective.prepare(batch)


def ours() -> tuple[float, dict[str, torch.Tensor]]:
    (objective, batch), model = prepared_step(), our_model()
    model.zero_grad(set_to_none=True)
    terms = objective.backward(batch, torch.device("cpu"), lambda loss, last: loss.backward())
    heads = {name: getattr(model, name) for name in ("sparse_linear", "colbert_linear")}
    return float(terms.means["loss"]), gradients(model.backbone, heads)


def theirs() -> tuple[float, dict[str, torch.Tensor]]:
    model = their_model()
    model.zero_grad(set_to_none=True)
    sides = [
        {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.int64)}
        for ids in token_ids()
    ]
    loss = model(*sides).loss
    loss.backward()
    heads = {"sparse_linear": model.sparse_linear, "colbert_linear": model.colbert_linear}
    return float(loss.detach()), gradients(model.model, heads)


def gradients(base: torch.nn.Module, heads: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Every gradient by its parameter's name; nothing is copied."""
    named = dict(base.named_parameters())
    for head, module in heads.items():
        named |= {f"{head}.{name}": parameter for name, parameter in module.named_parameters()}
    return {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}


def equal(a: tuple[float, dict[str, torch.Tensor]], b: tuple[float, dict[str, torch.Tensor]]) -> bool:
    (our_loss, our_gradients), (their_loss, their_gradients) = a, b
    return (
        abs(our_loss - their_loss) <= 1e-4
        and our_gradients.keys() == their_gradients.keys()
        and all(torch.allclose(our_gradients[name], their_gradients[name], rtol=0, atol=1e-4) for name in our_gradients)
    )
