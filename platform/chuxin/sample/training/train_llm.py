"""Trains the sample LLM: `python -m chuxin.sample.training.train_llm DIRECTORY --steps N`.

A Qwen2 of a few million parameters learns the synthesis line's calls (calls.py) over documents of a world of its own.
Shipped, in two parts, on cores of an EPYC in bf16 autocast. First a model of four layers, without the layers of
matching.py and the heads of reading.py and with 4 calls `answered` a document (this script as of 2026-11-23): 1,200
steps, 25 minutes of two cores; it wrote as it does now, and was at chance (0.53) in `answered`. Then `--start` from it,
which adds the two layers: 800 steps as `--steps 2400`, resumed with `--steps 1060`, 40 minutes of one core. `answered`
was right for 0.73 of the training's verdicts after 300 steps, 0.84 after 640, 0.90 after 960; without the two layers
it had stayed at 0.51 for 340. A training of all from nothing has not been tried. Figures on held-out entities:
bench_sample_llm, sample/models/README.md.

A step's lessons follow from the seed and its number; the learning rate is constant until the last quarter, then falls
to zero: a longer training can go on from any checkpoint of the constant part (`--resume`).
"""

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed, multiprocessing, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from chuxin.models.checkpoint import WEIGHT_FILES, name_tokenizer_class, quiet_transformers
from chuxin.sample.training import calls, matching, reading, tokenizer
from chuxin.sample.training.trees import IGNORED, Batch, batches, tree

MAX_LEN = 640  # 256 tokens of a document, the longest prompt in pieces, an answer of 96, and room
LESSONS = 16  # a step
PIECES = 2600
LAYERS, MATCHING = 6, (0, 2)  # in all, and those that matching.py draws
WARM_UP, DECAY = 100, 0.25
AUXILIARY = 0.2  # weight of the loss of each head of reading.py
CALLS = ("rich", "persona", "query", "answered", "gate", "standalone", "searchable", "single_intent")


def fixed_parts() -> list[str]:
    """What prompts hold besides their fields, longest pieces first joined: tokens of their own."""
    parts = {part for name in CALLS for part in calls.FIELD.split(calls.template(name))[::2] if part}
    for number in (1, 2, 3):
        parts |= {f"{number}.{word}，" for word in calls.KIND_WORDS.values()}
    parts |= {f"{d}，{n}" for d in calls.DIFFICULTY_WORDS.values() for n in calls.LENGTH_WORDS.values()}
    return sorted(parts)


def new_tokenizer(seed: int, lessons: int = 6000) -> PreTrainedTokenizerFast:
    """Fits the tokenizer to documents and answers of training lessons."""
    rng = random.Random(f"{seed}/tokenizer")

    def texts() -> list[str]:
        page, made = calls.lesson(rng)
        return [page.text, *(call.answer for call in made if call.name in ("rich", "persona"))]

    return tokenizer.train((text for _ in range(lessons) for text in texts()), PIECES, fixed_parts(), MAX_LEN)


def new_model(vocab: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Draws the model's weights. Heads of 64: what every attention kernel of an engine knows."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=-(-len(vocab) // 64) * 64, hidden_size=192, intermediate_size=512, num_hidden_layers=LAYERS,
        num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=MAX_LEN, rope_theta=10000.0,
        tie_word_embeddings=True, attention_dropout=0.0, bos_token_id=None, eos_token_id=vocab.eos_token_id,
        pad_token_id=vocab.pad_token_id, use_cache=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    matching.draw(model, MATCHING, vocab.convert_tokens_to_ids(tokenizer.USER))
    return model


@torch.no_grad()
def grow(model: Qwen2ForCausalLM, start: Qwen2ForCausalLM, first: int) -> None:
    """Takes over a trained model's weights; of one that lacks the layers MATCHING these are drawn to fit it."""
    taken = [number for number in range(LAYERS) if len(start.model.layers) == LAYERS or number not in MATCHING]
    for number, layer in zip(taken, start.model.layers, strict=True):
        model.model.layers[number].load_state_dict(layer.state_dict())
    model.model.embed_tokens.load_state_dict(start.model.embed_tokens.state_dict())
    model.model.norm.load_state_dict(start.model.norm.state_dict())
    if len(taken) < LAYERS:
        matching.draw(model, MATCHING, first)


class Losses(NamedTuple):
    """What a batch costs, and what it foresaw."""

    answers: torch.Tensor
    """The answers' summed, weighted cross entropy."""
    tokens: int
    foreseen: int
    """Of the answers' tokens."""
    verdicts: int
    """Calls `answered`."""
    right: int
    """Of these."""
    heads: list[torch.Tensor]


def losses(model: Qwen2ForCausalLM, heads: reading.Heads, one: Batch) -> Losses:
    """Computes a batch."""
    found = model.model(
        input_ids=one.ids_NL, position_ids=one.position_NL, attention_mask=one.mask_N1LL, use_cache=False,
        output_hidden_states=True,
    )  # fmt: skip
    hidden_NLH = found.last_hidden_state
    learned = one.target_NL != IGNORED
    logits_TV = model.lm_head(hidden_NLH[learned]).float()
    target_T = one.target_NL[learned]
    right_NL = torch.zeros_like(learned)
    right_NL[learned] = logits_TV.argmax(-1) == target_T
    loss_T = functional.cross_entropy(logits_TV, target_T, reduction="none")
    verdicts = [(p.row, p.at + p.branch.answer - 1) for p in one.places if p.branch.call.query is not None]
    states = (*found.hidden_states[:-1], hidden_NLH)
    return Losses((loss_T * one.weight_NL[learned]).sum(), len(target_T), int(right_NL.sum()), len(verdicts),
                  sum(int(right_NL[at]) for at in verdicts), reading.terms(heads, states, one))  # fmt: skip


def rate(step: int, steps: int) -> float:
    """The learning rate's factor: warm-up, constant, linear fall to 0 over the last quarter."""
    return min((step + 1) / WARM_UP, 1.0, (steps - step) / (DECAY * steps))


def optimizers(model: Qwen2ForCausalLM, heads: reading.Heads) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, norms, biases and the heads."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*others, *heads.parameters()], lr=3e-3, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def train(
    rank: int, workers: int, directory: Path, steps: int, seed: int, start: Path | None, resume: Path | None,
    tokens: int, every: int,
) -> None:  # fmt: skip
    """Trains and saves; writes a line of figures every 20 steps and a checkpoint every `every` steps.

    Each worker takes its part of a step's lessons; their gradients are summed, so their number changes rounding only.
    """
    if workers > 1:
        store = f"file://{directory.resolve()}.rendezvous"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    known = start or (directory if resume else None)
    vocab = PreTrainedTokenizerFast.from_pretrained(known) if known else new_tokenizer(seed)
    model = new_model(vocab, seed)
    if start:
        grow(model, Qwen2ForCausalLM.from_pretrained(start, dtype=torch.float32),
             vocab.convert_tokens_to_ids(tokenizer.USER))  # fmt: skip
    heads = reading.Heads(model.config.hidden_size)
    both = nn.ModuleList([model, heads])
    if rank == 0:
        print(f"{len(vocab)} tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    made = optimizers(model, heads)
    rates = [group["lr"] for o in made for group in o.param_groups]
    first = 0
    if resume:
        state = torch.load(resume, weights_only=True)
        both.load_state_dict(state["both"])
        for o, saved in zip(made, state["optimizers"], strict=True):
            o.load_state_dict(saved)
        first = state["step"]
    began, seen = time.time(), 0
    sums, read = Counter[str](), np.zeros(1)
    for step in range(first, steps):
        rng = random.Random(f"{seed}/{step}")
        for group, top in zip((g for o in made for g in o.param_groups), rates, strict=True):
            group["lr"] = top * rate(step, steps)
        trees = [tree(vocab, page, told) for page, told in (calls.lesson(rng) for _ in range(LESSONS))]
        branches = [branch for one in trees for branch in one.branches]
        count = sum(len(b.ids) - b.answer for b in branches)
        shown = sum(b.call.query is not None for b in branches)
        for one in batches(sorted(trees, key=lambda t: t.size)[rank::workers], tokens, vocab.pad_token_id):
            with torch.autocast("cpu", torch.bfloat16):
                made_of = losses(model, heads, one)
            (made_of.answers / count + AUXILIARY * sum(made_of.heads) * made_of.verdicts / shown).backward()
            sums += Counter(loss=made_of.answers.item(), tokens=made_of.tokens, foreseen=made_of.foreseen,
                            verdicts=made_of.verdicts, right=made_of.right)  # fmt: skip
            read = read + made_of.verdicts * np.array([term.item() for term in made_of.heads] or 0.0)
            seen += one.ids_NL.numel()
        if workers > 1:
            joined = torch.cat([p.grad.flatten() for p in both.parameters()])
            distributed.all_reduce(joined)
            torch.nn.utils.vector_to_parameters(joined, [p.grad for p in both.parameters()])
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for o in made:
            o.step()
            o.zero_grad()
        if rank:
            continue
        if (step + 1) % 20 == 0:
            spent = time.time() - began
            figures = {"step": step + 1, "loss": round(sums["loss"] / sums["tokens"], 4),
                       "right": round(sums["foreseen"] / sums["tokens"], 4),
                       "answered": round(sums["right"] / sums["verdicts"], 4),
                       "heads": (read / sums["verdicts"]).round(2).tolist(), "tokens_per_s": round(seen / spent),
                       "minutes": round(spent / 60, 1)}  # fmt: skip
            print(json.dumps(figures), flush=True)
            sums, read = Counter[str](), np.zeros(1)
        if (step + 1) % every == 0:
            save(model, vocab, directory)
            torch.save({"both": both.state_dict(), "optimizers": [o.state_dict() for o in made], "step": step + 1},
                       directory.with_name(f"{directory.name}-{step + 1}.pt"))
    if rank == 0:
        save(model, vocab, directory)


def save(model: Qwen2ForCausalLM, vocab: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes the model as transformers and vLLM read it, weights in bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    half = Qwen2ForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict(state)
    with quiet_transformers():
        half.save_pretrained(directory)
    (directory / WEIGHT_FILES[0]).chmod(0o644)
    vocab.save_pretrained(directory)
    name_tokenizer_class(directory / "tokenizer_config.json")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the model is written; checkpoints stand beside it")
    parser.add_argument("--steps", type=int, required=True, help=f"steps of {LESSONS} lessons")
    parser.add_argument("--seed", type=int, default=calls.SEED, help="of weights and lessons")
    parser.add_argument("--start", type=Path, help="a trained model to go on from, with new optimizers")
    parser.add_argument("--resume", type=Path, help="a checkpoint of the constant part")
    parser.add_argument("--tokens", type=int, default=4000, help="of a pass")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with its part of a step's lessons")
    given = vars(parser.parse_args())
    workers = given.pop("workers")
    if workers == 1:
        train(0, 1, **given)
        return
    given["directory"].with_name(f"{given['directory'].name}.rendezvous").unlink(missing_ok=True)
    order = ("directory", "steps", "seed", "start", "resume", "tokens", "every")
    multiprocessing.spawn(train, (workers, *(given[name] for name in order)), nprocs=workers)


if __name__ == "__main__":
    main()
