"""What the benchmarks of the contrastive step share: a model with M3's vocabulary, a global batch, one step on it.

The step is the objective's as the loop runs it: a plan's rows are prepared, encoded in micro-batches, scored, and
gradients are there at its end. Gradients are thrown away first; the optimizer is not part of it.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

VOCABULARY = 250_002
SPECIAL = (0, 1, 2, 3)


def new_model(hidden: int, layers: int, heads: int, max_len: int, seed: int):
    """Returns an XLM-R with random weights and M3's heads."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from chuxin.models.encoder import M3Model, new_heads

    torch.manual_seed(seed)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=max_len + 2, type_vocab_size=1, pad_token_id=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    backbone = XLMRobertaModel(config, add_pooling_layer=False).train()
    return M3Model(backbone, *new_heads(hidden, hidden, config.initializer_range), heads_trained=False)


def drawn_ids(rng: np.random.Generator, length: int, words: np.ndarray) -> list[int]:
    """A text of so many tokens, the special ones included."""
    return [0, *rng.choice(words, length - 2).tolist(), 2]


def new_batch(queries: Sequence[Sequence[int]], groups: Sequence[Sequence[Sequence[int]]]):
    """Returns a global batch of one rank, as a plan's reader gives it; all texts differ."""
    from chuxin.schema import PLAN_GROUPS
    from chuxin.training.plan_reader import Batch

    rows, texts = [], 0
    for row, (query, passages) in enumerate(zip(queries, groups, strict=True)):
        structs = [{"passage_id": n, "text_hash": texts + n, "token_ids": ids, "score": None}
                   for n, ids in enumerate(passages)]  # fmt: skip
        texts += len(passages)
        rows.append({"epoch": 0, "batch": 0, "slice": 0, "row": row, "query_id": row, "source": "drawn",
                     "query_hash": -1 - row, "query_ids": query, "passages": structs,
                     "lengths": [len(query), *map(len, passages)]})  # fmt: skip
    table = pa.Table.from_pylist(rows, PLAN_GROUPS)
    lengths, texts = np.concatenate([row["lengths"] for row in rows]), np.array([len(row["lengths"]) for row in rows])
    return Batch(1, 0, 0, len(rows), table, (lengths,), (texts,))


def new_objective(model, micro_batch_tokens: int, grad_cache: bool, **options):
    """Returns the contrastive objective of a config with these options."""
    from chuxin.training.config import FinetuneConfig, OptimizerConfig, TrainExecution
    from chuxin.training.finetune import Contrastive
    from chuxin.training.plan_reader import Plan

    execution = TrainExecution(micro_batch_tokens=micro_batch_tokens, grad_cache=grad_cache)
    optimizer = OptimizerConfig(learning_rate=1e-5, warmup_steps=0)
    config = FinetuneConfig("", "", optimizer, seed=1, dtype="fp32", execution=execution, **options)
    return Contrastive(model, config, Plan((), 1, 0, 0, "", ("drawn",)), SPECIAL)


def step(model, objective, batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Returns the loss and the gradients by parameter, which are not copied."""
    model.zero_grad(set_to_none=True)
    terms = objective.backward(objective.prepare(batch), torch.device("cpu"), lambda part, last: part.backward())
    named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return float(terms.means["loss"]), named


def close(a: tuple[float, dict[str, torch.Tensor]], b: tuple[float, dict[str, torch.Tensor]]) -> bool:
    """True if losses and all elements of all gradients are within 1e-4."""
    (loss, gradients), (other_loss, others) = a, b
    return abs(loss - other_loss) <= 1e-4 and gradients.keys() == others.keys() and all(
        torch.allclose(gradient, others[name], rtol=0, atol=1e-4) for name, gradient in gradients.items()
    )
