"""Trains the sample LLM: `python -m chuxin.sample.training.train_llm DIRECTORY --steps N`.

A Qwen2 of a few million parameters learns the synthesis line's calls (calls.py) over documents of a world of its own.
Shipped: 1,200 steps as `--steps 8000`, stopped at 1,000, resumed with `--steps 1200` (`--workers 2` from 300 on);
about 25 CPU minutes of an EPYC at about 5,000 tokens a CPU second in bf16 autocast (2,800 in fp32). The first 200
steps teach forms, verdicts on single queries and the gate, the next 300 copying names. On held-out entities
(bench_sample_llm): passage found by BM25 or the finetuned model 0.77 (easy 0.95, hard 0.60), kind as asked 1.00,
length 0.77, at most six characters copied 0.99; verdicts 1.00 but for `answered`, 0.53: whether a document answers
a query is not learned by then.

A step's lessons follow from the seed and its number; the learning rate is constant until the last quarter, then falls
to zero: a longer training can go on from any checkpoint of the constant part (`--resume`).
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from chuxin.models.checkpoint import WEIGHT_FILES, name_tokenizer_class, quiet_transformers
from chuxin.sample.training import calls, tokenizer
from chuxin.sample.training.trees import IGNORED, Batch, batches, tree

MAX_LEN = 640  # 256 tokens of a document, the longest prompt in pieces, an answer of 96, and room
LESSONS = 16  # a step
PIECES = 2600
WARM_UP, DECAY = 100, 0.25
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
        vocab_size=-(-len(vocab) // 64) * 64, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=MAX_LEN, rope_theta=10000.0,
        tie_word_embeddings=True, attention_dropout=0.0, bos_token_id=None, eos_token_id=vocab.eos_token_id,
        pad_token_id=vocab.pad_token_id, use_cache=True, attn_implementation="sdpa",
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def loss_sum(model: Qwen2ForCausalLM, one: Batch) -> tuple[torch.Tensor, int, int]:
    """Returns the answers' summed, weighted cross entropy, how many tokens they have and how many were foreseen."""
    hidden_NLH = model.model(
        input_ids=one.ids_NL, position_ids=one.position_NL, attention_mask=one.mask_N1LL, use_cache=False
    ).last_hidden_state
    learned = one.target_NL != IGNORED
    logits_TV = model.lm_head(hidden_NLH[learned]).float()
    target_T = one.target_NL[learned]
    right = int((logits_TV.argmax(-1) == target_T).sum())
    loss_T = functional.cross_entropy(logits_TV, target_T, reduction="none")
    return (loss_T * one.weight_NL[learned]).sum(), len(target_T), right


def rate(step: int, steps: int) -> float:
    """The learning rate's factor: warm-up, constant, linear fall to 0 over the last quarter."""
    return min((step + 1) / WARM_UP, 1.0, (steps - step) / (DECAY * steps))


def optimizers(model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def train(
    rank: int, workers: int, directory: Path, steps: int, seed: int, resume: Path | None, tokens: int, every: int
) -> None:
    """Trains and saves; writes a line of figures every 20 steps and a checkpoint every `every` steps.

    Each worker takes its part of a step's lessons; their gradients are summed, so their number changes rounding only.
    """
    if workers > 1:
        store = f"file://{directory.resolve()}.rendezvous"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    vocab = PreTrainedTokenizerFast.from_pretrained(directory) if resume else new_tokenizer(seed)
    model = new_model(vocab, seed)
    size = sum(p.numel() for p in model.parameters())
    if rank == 0:
        print(f"{len(vocab)} tokens, {size / 1e6:.2f} M parameters", flush=True)
    made = optimizers(model)
    rates = [group["lr"] for o in made for group in o.param_groups]
    first = 0
    if resume:
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        for o, saved in zip(made, state["optimizers"], strict=True):
            o.load_state_dict(saved)
        first = state["step"]
    began, seen, learned, right, total = time.time(), 0, 0, 0, 0.0
    for step in range(first, steps):
        rng = random.Random(f"{seed}/{step}")
        for group, top in zip((g for o in made for g in o.param_groups), rates, strict=True):
            group["lr"] = top * rate(step, steps)
        trees = [tree(vocab, page.text, told) for page, told in (calls.lesson(rng) for _ in range(LESSONS))]
        count = sum(len(b.ids) - b.answer for t in trees for b in t.branches)
        mine = sorted(trees, key=lambda t: t.size)[rank::workers]
        for one in batches(mine, tokens, vocab.pad_token_id):
            with torch.autocast("cpu", torch.bfloat16):
                loss, n, hits = loss_sum(model, one)
            (loss / count).backward()
            total, learned, right, seen = total + loss.item(), learned + n, right + hits, seen + one.ids_NL.numel()
        if workers > 1:
            joined = torch.cat([p.grad.flatten() for p in model.parameters()])
            distributed.all_reduce(joined)
            torch.nn.utils.vector_to_parameters(joined, [p.grad for p in model.parameters()])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in made:
            o.step()
            o.zero_grad()
        if rank:
            continue
        if (step + 1) % 20 == 0:
            spent = time.time() - began
            figures = {"step": step + 1, "loss": round(total / learned, 4), "right": round(right / learned, 4),
                       "tokens_per_s": round(seen / spent), "minutes": round(spent / 60, 1)}  # fmt: skip
            print(json.dumps(figures), flush=True)
            learned, right, total = 0, 0, 0.0
        if (step + 1) % every == 0:
            save(model, vocab, directory)
            torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in made], "step": step + 1},
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
    order = ("directory", "steps", "seed", "resume", "tokens", "every")
    multiprocessing.spawn(train, (workers, *(given[name] for name in order)), nprocs=workers)


if __name__ == "__main__":
    main()
