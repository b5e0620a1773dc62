"""Training steps on one CUDA device at real size: time, share of the matmul rate, memory, FlagEmbedding beside them.

    PYTHONPATH=platform python3 tests/gpu/bench_training.py            # an H200; writes results/gpu_training.json
    PYTHONPATH=platform python3 tests/gpu/bench_training.py --tiny     # the same code in seconds on a CPU; prints only

It needs torch and transformers, and NumPy and pyarrow, in which plans are read; FlagEmbedding's wheel where it is
there. A step is the training stages' own: their objectives (Contrastive with its loss in tiles and GradCache, Rebuild)
on a plan's batch that the reader's thread has prepared, from the copy to the device to gradients. Weights are fp32 and
random, the model runs under bf16 autocast, without optimizer, dropout or checkpointing. Contrastive steps: queries of
at most 64 tokens and their groups of passages, in-batch negatives; the unified one with self-distillation. Each runs
plain (all graphs are kept) and, as `grad_cache`, with one micro-batch's graph at a time. Lengths are all the same (no
padding for anybody) and, as `ragged`, uniform from an eighth of it up.

MFU = FLOPs that the step needs / its time / rate of a bf16 matrix product in the same run. FLOPs: 6 a token and weight
of a matrix, 12 · layers · width · L² a text for attention; RetroMAE's decoder attention only for what it predicts.
FlagEmbedding takes the same texts padded, halved as often as it runs out of memory; it is then compared at that size.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import transformers
from transformers import XLMRobertaConfig, XLMRobertaModel

from chuxin.models.encoder import M3Model, new_heads
from chuxin.models.retromae import RetroMAE
from chuxin.models.retromae_masks import Drawing
from chuxin.schema import PLAN_TEXTS
from chuxin.training.finetune import Contrastive
from chuxin.training.objective import Objective
from chuxin.training.plan_reader import Batch
from chuxin.training.pretrain import Rebuild

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
contrastive = importlib.import_module("contrastive")  # of the CPU's benchmarks: a plan's batch, the objective

RESULT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "gpu_training.json"
TEMPERATURE = 0.02
SPECIAL = contrastive.SPECIAL  # <s>, <pad>, </s>, <unk>
QUERY_TOKENS = 64


@dataclass(frozen=True)
class Sizes:
    """What is measured; the defaults are bge-m3's shape."""

    layers: int = 24
    hidden: int = 1024
    heads: int = 16
    intermediate: int = 4096
    vocabulary: int = 250_002
    lengths: tuple[int, ...] = (128, 512, 2048, 8192)
    retromae_lengths: tuple[int, ...] = (512, 8192)
    tokens: int = 32_768
    micro_batch_tokens: int = 16_384
    group_size: int = 8
    warmup: int = 3
    rounds: int = 10
    matrix: int = 8192
    seed: int = 1


TINY = Sizes(layers=2, hidden=32, heads=4, intermediate=64, vocabulary=500, lengths=(16, 40), retromae_lengths=(16, 40),
             tokens=320, micro_batch_tokens=120, group_size=2, warmup=1, rounds=2, matrix=64)  # fmt: skip


class Groups(NamedTuple):
    """A contrastive batch: queries, then their passages, group after group."""

    texts: list[np.ndarray]
    queries: int

    def half(self) -> Groups:
        """The first half of the queries with their groups."""
        kept, group = self.queries // 2, len(self.texts) // self.queries - 1
        return Groups(self.texts[:kept] + self.texts[self.queries : self.queries + kept * group], kept)

    def batch(self) -> Batch:
        """The global batch, as a plan's reader gives it."""
        group = len(self.texts) // self.queries - 1
        texts = [text.tolist() for text in self.texts]
        starts = range(self.queries, len(texts), group)
        return contrastive.new_batch(texts[: self.queries], [texts[start : start + group] for start in starts])


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    parser.add_argument("--steps", nargs="+", default=["dense", "unified", "retromae"])
    parser.add_argument("--kinds", nargs="+", default=["equal", "ragged"])
    parser.add_argument("--without-flagembedding", action="store_true")
    for field in dataclasses.fields(Sizes):
        many = {"nargs": "+"} if "lengths" in field.name else {}
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, **many)
    given = parser.parse_args()
    changed = {f.name: getattr(given, f.name) for f in dataclasses.fields(Sizes) if getattr(given, f.name) is not None}
    changed = {name: tuple(value) if isinstance(value, list) else value for name, value in changed.items()}
    sizes = dataclasses.replace(TINY if given.tiny else Sizes(), **changed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    rate = matmul_rate(sizes, device)
    print(f"{name_of(device)}: bf16 matrix product {rate / 1e12:.1f} TFLOP/s", flush=True)
    theirs, reason = (None, "not asked for") if given.without_flagembedding else flagembedding()
    print(f"FlagEmbedding: {reason}", flush=True)
    model = new_model(sizes, device)
    rows: list[dict[str, Any]] = []
    apart: dict[str, float] = {}
    for step in given.steps:
        if step == "retromae":
            rows += [measure_retromae(model, sizes, length, device, rate) for length in sizes.retromae_lengths]
            continue
        if theirs is not None:
            apart[step] = largest_difference(model, theirs, sizes, step == "unified", device)
            print(f"{step}: losses and gradients' norms at most {apart[step]:.1e} apart in fp32", flush=True)
        for length in sizes.lengths:
            for kind in given.kinds:
                groups = draw_groups(sizes, length, kind)
                rows.append({"step": step, "length": length, "kind": kind}
                            | measure_contrastive(model, theirs, groups, sizes, step == "unified", device, rate))
                print(json.dumps(rows[-1]), flush=True)
    record = {
        "name": "gpu_training", "device": name_of(device), "matmul_tflops": rate / 1e12, "flagembedding": reason,
        "largest_difference_fp32": apart,
        "settings": dataclasses.asdict(sizes), "dtype": "bf16 autocast over fp32 weights", "rows": rows,
        "packages": {"python": sys.version.split()[0], "torch": torch.__version__,
                     "transformers": transformers.__version__},
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    if device.type == "cuda" and not given.tiny:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record), flush=True)


def draw_groups(sizes: Sizes, length: int, kind: str) -> Groups:
    """Draws random texts: about `sizes.tokens` tokens of passages, in groups of `group_size` where so many fit."""
    rng = np.random.default_rng(sizes.seed)
    # At least two queries: one alone would have no negatives of another's.
    passages = max(4, sizes.tokens // length)
    queries = max(2, passages // sizes.group_size)
    counts = [min(length, QUERY_TOKENS)] * queries + [length] * (passages // queries * queries)
    if kind == "ragged":
        counts = [int(rng.integers(max(3, count // 8), count + 1)) for count in counts]
    return Groups([draw_text(rng, count, sizes.vocabulary) for count in counts], queries)


def draw_text(rng: np.random.Generator, length: int, vocabulary: int) -> np.ndarray:
    """Draws a text of so many tokens between <s> and </s>; the vocabulary's last entry, <mask>, is not drawn."""
    return np.r_[0, rng.integers(len(SPECIAL), vocabulary - 1, length - 2), 2]


def new_model(sizes: Sizes, device: torch.device) -> M3Model:
    """Draws the model."""
    torch.manual_seed(sizes.seed)
    config = XLMRobertaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, intermediate_size=sizes.intermediate, type_vocab_size=1,
        max_position_embeddings=max(*sizes.lengths, *sizes.retromae_lengths, QUERY_TOKENS) + 2, layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    with device:
        backbone = XLMRobertaModel(config, add_pooling_layer=False)
    return M3Model(backbone, *new_heads(sizes.hidden, sizes.hidden, 0.02), heads_trained=False).to(device).train()


def our_objective(model: M3Model, sizes: Sizes, heads: bool, cached: bool = False, bf16: bool = True) -> Contrastive:
    """The finetune or the refine stage's objective around a model."""

    def forward(*arguments: Any) -> Any:
        # As DeepSpeed has it, around the model alone: scores and losses are fp32.
        with autocast(next(model.parameters()).device, bf16):
            return model(*arguments)

    unified = {"heads": "all", "self_distill_from": 1} if heads else {}
    return contrastive.new_objective(forward, sizes.micro_batch_tokens, cached, temperature=TEMPERATURE, **unified)


def run_step(objective: Objective, prepared: Any, device: torch.device) -> torch.Tensor:
    """A step up to gradients, as the loop runs it; returns the loss."""
    return objective.backward(prepared, device, lambda loss, last: loss.backward()).means["loss"]


def measure_contrastive(
    model: M3Model, theirs: type | None, groups: Groups, sizes: Sizes, heads: bool, device: torch.device, rate: float
) -> dict[str, Any]:  # fmt: skip
    """Measures our step, plain and with GradCache, and FlagEmbedding's at the largest size it can run."""

    def ours(part: Groups, cached: bool = False) -> dict[str, Any]:
        objective = our_objective(model, sizes, heads, cached)
        prepared, lengths = objective.prepare(part.batch()), list(map(len, part.texts))
        found = clocked(lambda: run_step(objective, prepared, device), model, lengths, sizes, device)
        flops = step_flops(lengths, sizes, sizes.hidden if heads else 0)
        return found | {"micro_batches": len(prepared.parts), "mfu": flops / found["seconds"] / rate}

    result = ours(groups) | {"queries": groups.queries, "texts": len(groups.texts)}
    result["grad_cache"] = ours(groups, cached=True)
    if theirs is None:
        return result
    model.zero_grad(set_to_none=True)
    other = their_model(theirs, model, heads)

    def their_step(*sides: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast(device):
            loss = other(*sides).loss
        loss.backward()
        return loss.detach()

    while groups.queries:
        sides = [padded(texts, device) for texts in (groups.texts[: groups.queries], groups.texts[groups.queries :])]
        try:
            lengths = list(map(len, groups.texts))
            found = clocked(lambda sides=sides: their_step(*sides), model, lengths, sizes, device)
        except torch.cuda.OutOfMemoryError:
            groups = groups.half()
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        same = ours(groups)
        result["flagembedding"] = found | {
            "queries": groups.queries, "our_seconds": same["seconds"], "our_loss": same["loss"],
            "our_peak_gib": same["peak_gib"], "ratio_same_batch": found["seconds"] / same["seconds"],
            "ratio_tokens_per_second": result["tokens_per_second"] / found["tokens_per_second"],
        }  # fmt: skip
        return result
    result["flagembedding"] = "out of memory with a single query"
    return result


def flagembedding() -> tuple[type | None, str]:
    """Returns FlagEmbedding's training model, or None, and in words which it is or why there is none."""
    try:
        import FlagEmbedding
        from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model
    except ImportError as error:
        return None, f"cannot be imported here ({error}): our steps stand alone"
    return EncoderOnlyEmbedderM3Model, f"its M3 model from {Path(FlagEmbedding.__file__).parent.name}"


def largest_difference(model: M3Model, theirs: type, sizes: Sizes, heads: bool, device: torch.device) -> float:
    """How far loss and gradients' norms lie apart in fp32, relatively, on a few short texts: are the steps the same?"""
    tiny = dataclasses.replace(sizes, tokens=8 * 16, group_size=2)
    groups = draw_groups(tiny, 16, "equal")
    sides = [padded(texts, device) for texts in (groups.texts[: groups.queries], groups.texts[groups.queries :])]
    objective, other = our_objective(model, sizes, heads, cached=True, bf16=False), their_model(theirs, model, heads)

    def their_step() -> torch.Tensor:
        loss = other(*sides).loss
        loss.backward()
        return loss

    found = []
    for step in (lambda: run_step(objective, objective.prepare(groups.batch()), device), their_step):
        model.zero_grad(set_to_none=True)
        value = step()
        # A key's bias has no gradient but rounding's.
        moved = [p.grad for name, p in model.named_parameters() if p.grad is not None and "key.bias" not in name]
        found.append(torch.stack([value.detach(), *(gradient.norm() for gradient in moved)]))
    model.zero_grad(set_to_none=True)
    return ((found[0] - found[1]).abs() / found[1].abs().clamp_min(1e-3)).max().item()


class Tokenizer(NamedTuple):
    """All that FlagEmbedding's training model asks of a tokenizer."""

    cls_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    unk_token_id: int = 3


def their_model(theirs: type, model: M3Model, heads: bool) -> torch.nn.Module:
    """FlagEmbedding's model around the same weights, in its own unified and self-distilling mode."""
    base = {"model": model.backbone, "sparse_linear": model.sparse_linear, "colbert_linear": model.colbert_linear}
    made = theirs(base, tokenizer=Tokenizer(), temperature=TEMPERATURE, normalize_embeddings=True,
                  unified_finetuning=heads, use_self_distill=heads, self_distill_start_step=-1)  # fmt: skip
    return made.train()


def padded(texts: list[np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """What FlagEmbedding's collator would give."""
    lengths_N = torch.tensor([len(text) for text in texts])
    ids_NL = torch.full((len(texts), int(lengths_N.max())), 1)
    for row, text in enumerate(texts):
        ids_NL[row, : len(text)] = torch.from_numpy(text)
    mask_NL = (torch.arange(ids_NL.shape[1]) < lengths_N[:, None]).long()
    return {"input_ids": ids_NL.to(device), "attention_mask": mask_NL.to(device)}


def measure_retromae(
    model: M3Model, sizes: Sizes, length: int, device: torch.device, rate: float
) -> dict[str, Any]:
    """Measures RetroMAE's step, masks drawn in it, on texts of one length."""
    rng = np.random.default_rng(sizes.seed)
    texts = [draw_text(rng, length, sizes.vocabulary) for _ in range(max(1, sizes.tokens // length))]
    mask = sizes.vocabulary - 1
    drawing = Drawing(sizes.seed, 0.3, 0.5, sizes.vocabulary, mask, (*SPECIAL, mask))
    module = RetroMAE(model, sizes.seed, 0.0).to(device).train()

    def forward(*arguments: Any) -> Any:
        with autocast(device):
            return module(*arguments)

    objective = Rebuild(forward, drawing, sizes.micro_batch_tokens, ("drawn",))
    prepared = objective.prepare(text_batch(texts))
    result = clocked(lambda: run_step(objective, prepared, device), module, [length] * len(texts), sizes, device)
    masked, predicted, layer = prepared.masked, prepared.maskable, weights_of_a_layer(sizes)
    # Keys and values of all tokens, the rest of the layer for predicted ones; then two heads and their projections.
    decoder = 2 * sizes.hidden**2 * len(texts) * length + (layer - 2 * sizes.hidden**2) * predicted
    head = (sizes.hidden**2 + sizes.hidden * sizes.vocabulary) * (masked + predicted)
    flops = step_flops([length] * len(texts), sizes, 0) + 6 * (decoder + head) + 12 * sizes.hidden * length * predicted
    row = {"step": "retromae", "length": length, "kind": "equal", "texts": len(texts)} | result
    row |= {"micro_batches": len(prepared.parts), "mfu": flops / row["seconds"] / rate}
    print(json.dumps(row), flush=True)
    return row


def text_batch(texts: list[np.ndarray]) -> Batch:
    """A global batch of texts, as a plan's reader gives it."""
    rows = [{"epoch": 0, "batch": 0, "slice": 0, "row": row, "passage_id": row, "offset": 0, "source": "drawn",
             "length": len(text), "token_ids": text.tolist()} for row, text in enumerate(texts)]  # fmt: skip
    lengths = np.array([len(text) for text in texts], np.int64)
    table = pa.Table.from_pylist(rows, PLAN_TEXTS)
    return Batch(1, 0, 0, len(rows), table, (lengths,), (np.ones_like(lengths),))


def weights_of_a_layer(sizes: Sizes) -> int:
    """Weights of one layer's matrices."""
    return 4 * sizes.hidden**2 + 2 * sizes.hidden * sizes.intermediate


def step_flops(lengths: list[int], sizes: Sizes, vector_width: int) -> int:
    """FLOPs of forward and backward pass of the encoder, and of the multi-vector head of this width."""
    weights = sizes.layers * weights_of_a_layer(sizes) + sizes.hidden * vector_width
    return 6 * weights * sum(lengths) + 12 * sizes.layers * sizes.hidden * sum(length**2 for length in lengths)


def clocked(
    step: Callable[[], torch.Tensor], module: torch.nn.Module, lengths: list[int] | tuple[int, ...], sizes: Sizes,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Runs steps up to gradients and returns the median time, the rate in real tokens, memory and the loss."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for turn in range(sizes.warmup + sizes.rounds):
        module.zero_grad(set_to_none=True)
        begun = now(device)
        value = step()
        if turn >= sizes.warmup:
            seconds.append(now(device) - begun)
    module.zero_grad(set_to_none=True)
    median = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"seconds": median, "seconds_min": min(seconds), "seconds_max": max(seconds), "tokens": sum(lengths),
            "tokens_per_second": sum(lengths) / median, "peak_gib": peak, "loss": value.item()}  # fmt: skip


def autocast(device: torch.device, bf16: bool = True) -> torch.autocast:
    """bf16 for matrix products, or not."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def matmul_rate(sizes: Sizes, device: torch.device) -> float:
    """FLOP/s of the best of some bf16 matrix products on random numbers."""
    size = sizes.matrix
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(sizes.warmup + sizes.rounds):
        begun = now(device)
        left @ right
        seconds.append(now(device) - begun)
    return 2 * size**3 / min(seconds)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def name_of(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
