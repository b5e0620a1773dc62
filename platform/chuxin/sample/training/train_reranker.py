"""Trains the sample reranker: `python -m chuxin.sample.training.train_reranker DIRECTORY --steps N`.

A small cross-encoder in XLM-R's layout learns from pairs of a world of its own (see calls.py) whether a text answers
a query: a document that tells the asked fact, against documents of the same entity that tell others, of entities that
share all but one part of the name, and of strangers. Binary cross-entropy puts the border at a logit of 0.
Shipped: 4,000 steps (`--steps 6000`, stopped at 2,000, resumed with `--steps 4000`), 28 minutes of one core of an EPYC.
On held-out entities (bench_sample_llm) a query's passage comes first of 20 lexical neighbours for 0.98 of the queries
(BM25: 0.28); 0.96 of the passages score above 0, 0.997 of the neighbours below.

One bit a pair teaches a model from nothing slowly. So heads that are thrown away afterwards read what the world knows:
from each query token of the first layer whether it, alone and behind the token before it, stands in the document; from
the query's tokens of the second layer, summed, which parts of what is asked match; from the second layer's first state
what is asked and told; from the last one the matches again.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chuxin.models.config import InitConfig
from chuxin.models.packed import Packed, encode, pack
from chuxin.models.reranker import Classifier, CrossEncoder, pair_ids, save_reranker
from chuxin.models.start import new_model, train_tokenizer
from chuxin.sample.training import calls
from chuxin.sample.training.calls import Document
from chuxin.sample.training.facts import (
    ATTRIBUTES,
    CLASSES,
    COPIES,
    MATCHES,
    TOLD,
    UNKNOWN,
    WHENS,
    Example,
    copies,
    example,
    parts,
)
from chuxin.sample.training.forms import Written
from chuxin.sample.world import Entity, Passage, passages

MAX_LEN = 512
VOCABULARY = 2600
QUERIES = 10  # a step, each with six documents
ALONE = 4  # queries without a document for each of these
WARM_UP, DECAY = 50, 0.3
AUXILIARY = 0.3  # weight of each auxiliary head's loss


def brief_entity(rng: random.Random) -> Entity:
    """An entity; two in three tell little besides facts, which makes their pairs cheap."""
    subject = calls.training_entity(rng)
    while rng.random() < 0.8 and subject.fillers + subject.background > 1:
        subject = calls.training_entity(rng)
    return subject


def page(rng: random.Random, told: Sequence[Passage]) -> Document:
    """One of the passages alone, or a document of up to three."""
    size = rng.choices((1, 2, 3), (8, 2, 1))[0]
    return Document(told[0].text, (told[0],), "") if size == 1 else calls.document(rng, told[:size])


def examples(rng: random.Random) -> list[Example]:
    """A query with one document that answers it and three to five that do not (or do by chance, then so labelled)."""
    subject = brief_entity(rng)
    mine = passages(calls.SEED, subject)
    gold = rng.choice(mine)
    if rng.random() < 0.5:
        query = calls.query_of(rng, gold)
    else:
        text, attribute = calls.plain_query(rng, gold)
        query = Written(text, subject, attribute, gold.when.said, "", "", "")
    others = [p for p in mine if p is not gold]
    near = [p for p in others if p.topic == gold.topic]
    rng.shuffle(others)
    found = [page(rng, [gold, *others]), page(rng, others), page(rng, [rng.choice(near)]), page(rng, others[2:])]
    for stranger in (calls.neighbour(rng, subject), calls.training_entity(rng, rng.choice((subject.domain, None)))):
        told = passages(calls.SEED, stranger)
        same = [p for p in told if p.topic == gold.topic and p.entity.domain is subject.domain]
        rng.shuffle(told)
        found.append(page(rng, [rng.choice(same or told), *told]))
    return [example(query, one) for one in found] + alone(rng, mine)


def alone(rng: random.Random, mine: Sequence[Passage]) -> list[Example]:
    """Queries without a document, at a sixth of a pair's cost: what they ask for is learned mostly from these."""
    made = []
    for _ in range(ALONE):
        query = calls.query_of(rng, rng.choice(mine))
        asked = ATTRIBUTES[query.subject.domain.key, query.attribute.noun]
        when = WHENS[query.when] if query.when else UNKNOWN
        classes = (*parts(query.subject), asked, when, *(UNKNOWN,) * 3)
        made.append(Example(query.text, "", False, classes, (), (UNKNOWN,) * MATCHES))
    return made


def new_reranker(seed: int, lessons: int = 6000) -> tuple[PreTrainedTokenizerFast, CrossEncoder]:
    """Fits a tokenizer to training pairs and draws the model."""
    rng = random.Random(f"{seed}/tokenizer")
    texts = (text for _ in range(lessons) for one in examples(rng)[:2] for text in (one.query, one.document))
    vocab = train_tokenizer(texts, VOCABULARY, MAX_LEN)
    config = InitConfig(
        seed=seed, passages="made", max_texts=1, vocab_size=VOCABULARY, layers=3, hidden=192, heads=3, intermediate=768,
        max_len=MAX_LEN, dropout=0.0,
    )  # fmt: skip
    backbone = new_model(config, len(vocab)).backbone
    attend_to_equals(backbone)
    classifier = Classifier(config.hidden)
    classifier.draw(seed, backbone.config.initializer_range)
    return vocab, CrossEncoder(backbone, classifier)


@torch.no_grad()
def attend_to_equals(backbone: PreTrainedModel) -> None:
    """Draws weights with which the first two layers compare tokens from the start.

    Places get the first quarter of the width, as sines, tokens the rest; keys are queries, orthonormal, and read tokens
    alone: a token attends to equal ones wherever they stand, and their values, drawn as large as what they are added
    to, tell where. Trockman & Kolter 2023 (Mimetic Initialization of Self-Attention Layers) found such products in
    trained models. From independent small draws, 700 steps did not teach whether a query's token stands in a document.
    """
    width, heads = backbone.config.hidden_size, backbone.config.num_attention_heads
    own = width // 4
    embeddings, std = backbone.embeddings, backbone.config.initializer_range
    embeddings.word_embeddings.weight[:, :own] = 0
    places = torch.arange(len(embeddings.position_embeddings.weight))[:, None]
    angles = places / 300 ** (torch.arange(own // 2) / (own // 2))
    embeddings.position_embeddings.weight.zero_()
    embeddings.position_embeddings.weight[:, :own] = torch.cat([angles.sin(), angles.cos()], 1) * std * 2**0.5
    for layer in backbone.encoder.layer[:2]:
        attention = layer.attention
        for rows in attention.self.query.weight.chunk(heads):
            rows[:, :own] = 0
            nn.init.orthogonal_(rows[:, own:], 1.2)
        attention.self.key.weight.copy_(attention.self.query.weight)
        nn.init.orthogonal_(attention.self.value.weight)
        nn.init.orthogonal_(attention.output.dense.weight)


def rate(step: int, steps: int) -> float:
    """The learning rate's factor: warm-up, constant, linear fall to 0."""
    return min((step + 1) / WARM_UP, 1.0, (steps - step) / (DECAY * steps))


class Heads(nn.Module):
    """The heads that are thrown away; each reads states of width H and learns what the world knows of a pair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.ModuleList(nn.Linear(width, count) for count in CLASSES)
        self.told = nn.Linear(width, TOLD)
        self.matches = nn.Linear(width, MATCHES)
        self.evidence = nn.Linear(width, MATCHES)
        self.copies = nn.Linear(width, COPIES)


class Joined(NamedTuple):
    """One packed batch of N pairs of T tokens, Q of them queries' of pairs, and what is to be read from it."""

    packed: Packed
    paired_N: torch.Tensor
    label_N: torch.Tensor
    class_NC: torch.Tensor
    match_NM: torch.Tensor
    told_NF: torch.Tensor
    query_Q: torch.Tensor
    """Where in the batch a pair's query tokens stand."""
    owner_Q: torch.Tensor
    """Which pair each belongs to."""
    copy_QC: torch.Tensor
    """Whether each stands in the document, and stands there behind the same token (COPIES)."""


def joined(drawn: Sequence[Example], vocab: PreTrainedTokenizerFast) -> Joined:
    """Tokenises and packs examples; neighbours of one length share a kernel call."""
    texts = [text for one in drawn for text in (one.query, one.document)]
    ids = vocab(texts, truncation=True, max_length=250)["input_ids"]
    whole = [
        pair_ids(query, document) if one.document else np.array(query)
        for one, query, document in zip(drawn, ids[::2], ids[1::2], strict=True)
    ]
    order = sorted(range(len(drawn)), key=lambda i: len(whole[i]))
    packed = pack([whole[i] for i in order])
    drawn = [drawn[i] for i in order]
    told_NF = torch.zeros(len(drawn), TOLD)
    at, owner, copied = [], [], []
    for row, (one, i, start) in enumerate(zip(drawn, order, packed.bounds_N1[:-1].tolist(), strict=True)):
        told_NF[row, list(one.told)] = 1.0
        if one.document:
            query = ids[2 * i][1:-1]
            at += range(start + 1, start + 1 + len(query))
            owner += [row] * len(query)
            copied += copies(query, ids[2 * i + 1][1:-1])
    return Joined(
        packed, torch.tensor([bool(one.document) for one in drawn]), torch.tensor([float(one.label) for one in drawn]),
        torch.tensor([one.classes for one in drawn]), torch.tensor([one.matches for one in drawn], dtype=torch.float32),
        told_NF, torch.tensor(at), torch.tensor(owner), torch.tensor(copied),
    )  # fmt: skip


def loss_terms(model: CrossEncoder, heads: Heads, one: Joined) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Returns the N logits, their loss and the heads' losses: classes, told, matches, evidence, copies."""
    states: list[torch.Tensor] = []
    layers = model.backbone.encoder.layer[:2]
    hooks = [at.output.LayerNorm.register_forward_hook(lambda _m, _i, out_TH: states.append(out_TH)) for at in layers]
    with torch.autocast("cpu", torch.bfloat16):
        hidden_TH = encode(model.roberta, one.packed, None, False)
    for hook in hooks:
        hook.remove()
    lowest_TH, middle_TH = (state_TH.float() for state_TH in states)
    firsts = one.packed.bounds_N1[:-1].long()
    first_NH, middle_NH = hidden_TH[firsts].float(), middle_TH[firsts]
    logit_N = model.classifier(first_NH)
    crossed = functional.binary_cross_entropy_with_logits
    loss = crossed(logit_N[one.paired_N], one.label_N[one.paired_N])
    terms = [functional.cross_entropy(head(middle_NH), one.class_NC[:, c]) for c, head in enumerate(heads.classes)]
    # Means over mostly zeros (30) and over five heads or two (3).
    terms.append(30 * crossed(heads.told(middle_NH[one.paired_N]), one.told_NF[one.paired_N]))
    known = one.match_NM != UNKNOWN
    evidence_NM = torch.zeros_like(one.match_NM).index_add_(0, one.owner_Q, heads.evidence(middle_TH[one.query_Q]))
    terms.append(3 * crossed(heads.matches(first_NH)[known], one.match_NM[known]))
    terms.append(3 * crossed(evidence_NM[known], one.match_NM[known]))
    terms.append(3 * crossed(heads.copies(lowest_TH[one.query_Q]), one.copy_QC))
    return logit_N, loss, terms


def train(directory: Path, steps: int, seed: int, resume: Path | None, every: int) -> None:
    """Trains and saves; writes a line of figures every 20 steps and a checkpoint every `every` steps."""
    vocab, model = new_reranker(seed)
    torch.manual_seed(seed)
    heads = Heads(model.backbone.config.hidden_size)
    print(f"{len(vocab)} tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    both = nn.ModuleList([model, heads])
    matrices = [p for n, p in model.backbone.named_parameters() if p.ndim == 2 and "embeddings" not in n]
    chosen = {id(p) for p in matrices}
    made = [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in both.parameters() if id(p) not in chosen], lr=2e-3, weight_decay=0.0),
    ]
    rates = [group["lr"] for o in made for group in o.param_groups]
    first = 0
    if resume:
        state = torch.load(resume, weights_only=True)
        both.load_state_dict(state["both"])
        for o, saved in zip(made, state["optimizers"], strict=True):
            o.load_state_dict(saved)
        first = state["step"]
    began, losses, right, read, pairs = time.time(), [], [], [], 0
    for step in range(first, steps):
        rng = random.Random(f"{seed}/{step}")
        for group, top in zip((g for o in made for g in o.param_groups), rates, strict=True):
            group["lr"] = top * rate(step, steps)
        one = joined([drawn for _ in range(QUERIES) for drawn in examples(rng)], vocab)
        logit_N, loss, terms = loss_terms(model, heads, one)
        (loss + AUXILIARY * sum(terms)).backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for o in made:
            o.step()
            o.zero_grad()
        pairs += int(one.paired_N.sum())
        losses.append(loss.item())
        right.append(float(((logit_N > 0) == (one.label_N > 0.5))[one.paired_N].float().mean()))
        read.append([term.item() for term in terms])
        if (step + 1) % 20 == 0:
            spent = time.time() - began
            figures = {"step": step + 1, "loss": round(float(np.mean(losses)), 4),
                       "right": round(float(np.mean(right)), 4), "heads": np.mean(read, 0).round(2).tolist(),
                       "pairs_per_s": round(pairs / spent), "minutes": round(spent / 60, 1)}  # fmt: skip
            print(json.dumps(figures), flush=True)
            losses, right, read = [], [], []
        if (step + 1) % every == 0:
            torch.save({"both": both.state_dict(), "optimizers": [o.state_dict() for o in made], "step": step + 1},
                       directory.with_name(f"{directory.name}-{step + 1}.pt"))
            save(model, vocab, directory)
    save(model, vocab, directory)


def save(model: CrossEncoder, vocab: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes the model in bfloat16."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_reranker(model.to(torch.bfloat16), vocab, str(directory))
    model.to(torch.float32).load_state_dict(state)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the model is written; checkpoints stand beside it")
    parser.add_argument("--steps", type=int, required=True, help=f"steps of {QUERIES} queries")
    parser.add_argument("--seed", type=int, default=calls.SEED, help="of weights and pairs")
    parser.add_argument("--resume", type=Path, help="a checkpoint of the constant part")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
