"""Trains the sample reranker: `python -m chuxin.sample.training.train_reranker DIRECTORY --steps N`.

A small cross-encoder in XLM-R's layout learns from pairs of a world of its own (see calls.py) whether a text answers
a query: a document that tells the asked fact, against documents of the same entity that tell others, of entities that
share all but one part of the name, and of strangers. Binary cross-entropy puts the border at a logit of 0.
Shipped: a state of the constant part between steps 700 and 800 (`--steps 6000`, stopped), about 20 CPU minutes, and far
too few: it tells a query's subject from strangers (first of 20 lexical neighbours 0.39, by chance 0.05) but not the
asked fact among passages of one entity; its logits stay below 0 for positives too (median -1.8, negatives -4.1).

One bit a pair teaches a model from nothing slowly. So heads that are thrown away afterwards read what the world knows:
from the first state of the last layer but one what is asked and told, from the last which parts of it match.
"""

import argparse
import functools
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
from transformers import PreTrainedTokenizerFast

from chuxin.models.config import InitConfig
from chuxin.models.packed import encode, pack
from chuxin.models.reranker import Classifier, CrossEncoder, pair_ids, save_reranker
from chuxin.models.start import new_model, train_tokenizer
from chuxin.sample import pools
from chuxin.sample.training import calls
from chuxin.sample.training.calls import Document, answers
from chuxin.sample.training.forms import Written
from chuxin.sample.world import DOMAINS, Entity, Passage, entity, passages

MAX_LEN = 512
VOCABULARY = 2600
QUERIES = 10  # a step, each with six documents
ALONE = 12  # queries without a document for each of these
WARM_UP, DECAY = 50, 0.3
UNKNOWN = -100  # what torch's cross entropy leaves out
AUXILIARY = 0.3  # weight of each auxiliary head's loss

REGIONS = {word.said: number for number, word in enumerate(pools.REGIONS)}
ATTRIBUTES = {
    (domain.key, attribute.noun): number
    for number, (domain, attribute) in enumerate(
        (domain, attribute) for domain in DOMAINS for topic in domain.topics for attribute in topic.attributes
    )
}
WHENS = {said: number for number, said in enumerate(sorted({word.said for domain in DOMAINS for word in domain.whens}))}
KINDS = {(domain.key, number): place for place, (domain, number) in enumerate(
    (domain, number) for domain in DOMAINS for number in range(len(domain.kinds))
)}  # fmt: skip
PARTS = (len(REGIONS), len(pools.BRANDS), len(KINDS))
CLASSES = (*PARTS, len(ATTRIBUTES), len(WHENS), *PARTS)
TOLD = len(ATTRIBUTES) + len(WHENS)
MATCHES = 5


class Example(NamedTuple):
    """A pair, whether the document answers, and the classes that the auxiliary heads shall read."""

    query: str
    document: str
    label: bool
    classes: tuple[int, ...]
    """Of the query its region, brand, kind, fact and time; of the document region, brand and kind."""
    told: tuple[int, ...]
    """Which facts and times the document tells, numbered one after the other."""
    matches: tuple[int, ...]
    """Whether region, brand, kind, fact and time of the query are the document's."""


@functools.lru_cache(maxsize=20000)
def parts(subject: Entity) -> tuple[int, int, int]:
    """Numbers of an entity's region, brand and kind."""
    kind = subject.index % len(subject.domain.kinds)
    pattern, said = subject.domain.pattern, subject.domain.kinds[kind].said
    brand = next(
        number for number, word in enumerate(pools.BRANDS)
        if pattern.format(r=subject.region, b=word.said, t=said) == subject.name
    )  # fmt: skip
    return REGIONS[subject.region], brand, KINDS[subject.domain.key, kind]


def neighbour(rng: random.Random, subject: Entity) -> Entity:
    """An entity of the same domain that shares two of region, brand and kind."""
    counts = (len(pools.REGIONS), len(pools.BRANDS), len(subject.domain.kinds))
    out = rng.randrange(3)
    step = int(np.prod([count for number, count in enumerate(counts) if number != out]))
    while True:
        index = (subject.index + step * rng.randrange(1, counts[out])) % calls.ENTITIES
        other = entity(calls.SEED, subject.domain, index)
        if other.name not in calls.held_out_names():
            return other


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
    for stranger in (neighbour(rng, subject), calls.training_entity(rng, rng.choice((subject.domain, None)))):
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


def example(query: Written, one: Document) -> Example:
    """A pair with its label and classes; a document of several entities has no class of its own."""
    subjects = {p.entity.name for p in one.told}
    about = parts(one.told[0].entity) if len(subjects) == 1 else (UNKNOWN,) * 3
    when = WHENS[query.when] if query.when else UNKNOWN
    facts = {ATTRIBUTES[p.entity.domain.key, attribute.noun] for p in one.told for attribute in p.told}
    whens = {WHENS[p.when.said] for p in one.told}
    asked = ATTRIBUTES[query.subject.domain.key, query.attribute.noun]
    same = [UNKNOWN if UNKNOWN in about else int(a == b) for a, b in zip(parts(query.subject), about, strict=True)]
    matches = (*same, int(asked in facts), UNKNOWN if not query.when else int(when in whens))
    classes = (*parts(query.subject), asked, when, *about)
    told = (*sorted(facts), *sorted(len(ATTRIBUTES) + number for number in whens))
    return Example(query.text, one.text, answers(one, query), classes, told, matches)


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
    classifier = Classifier(config.hidden)
    classifier.draw(seed, backbone.config.initializer_range)
    return vocab, CrossEncoder(backbone, classifier)


def rate(step: int, steps: int) -> float:
    """The learning rate's factor: warm-up, constant, linear fall to 0."""
    return min((step + 1) / WARM_UP, 1.0, (steps - step) / (DECAY * steps))


def train(directory: Path, steps: int, seed: int, resume: Path | None, every: int) -> None:
    """Trains and saves; writes a line of figures every 20 steps and a checkpoint every `every` steps."""
    vocab, model = new_reranker(seed)
    torch.manual_seed(seed)
    heads = nn.ModuleList(nn.Linear(model.backbone.config.hidden_size, count) for count in (*CLASSES, TOLD, MATCHES))
    read_TH: list[torch.Tensor] = []
    middle = model.backbone.encoder.layer[-2].output.LayerNorm
    middle.register_forward_hook(lambda _module, _inputs, states_TH: read_TH.append(states_TH))
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
        drawn = [one for _ in range(QUERIES) for one in examples(rng)]
        pairs += int(sum(bool(one.document) for one in drawn))
        texts = [text for one in drawn for text in (one.query, one.document)]
        ids = vocab(texts, truncation=True, max_length=250)["input_ids"]
        joined = [
            pair_ids(query, document) if one.document else np.array(query)
            for one, query, document in zip(drawn, ids[::2], ids[1::2], strict=True)
        ]
        # Neighbours of one length share a kernel call.
        order = sorted(range(len(drawn)), key=lambda i: len(joined[i]))
        drawn, packed = [drawn[i] for i in order], pack([joined[i] for i in order])
        label_N = torch.tensor([float(one.label) for one in drawn])
        paired = torch.tensor([bool(one.document) for one in drawn])
        class_NC = torch.tensor([one.classes for one in drawn])
        match_NM = torch.tensor([one.matches for one in drawn], dtype=torch.float32)
        told_NF = torch.zeros(len(drawn), TOLD)
        for row, one in enumerate(drawn):
            told_NF[row, list(one.told)] = 1.0
        with torch.autocast("cpu", torch.bfloat16):
            hidden_TH = encode(model.roberta, packed, None, False)
        first_NH = hidden_TH[packed.bounds_N1[:-1].long()].float()
        logit_N = model.classifier(first_NH)
        loss = functional.binary_cross_entropy_with_logits(logit_N[paired], label_N[paired])
        middle_NH = read_TH.pop()[packed.bounds_N1[:-1].long()].float()
        terms = [functional.cross_entropy(heads[c](middle_NH), class_NC[:, c]) for c in range(len(CLASSES))]
        told = functional.binary_cross_entropy_with_logits(heads[-2](middle_NH[paired]), told_NF[paired])
        known = match_NM != UNKNOWN
        same = functional.binary_cross_entropy_with_logits(heads[-1](first_NH)[known], match_NM[known])
        terms += [told * 30, same * 3]  # a mean over mostly zeros; five heads in one
        (loss + AUXILIARY * sum(terms)).backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for o in made:
            o.step()
            o.zero_grad()
        losses.append(loss.item())
        right.append(float(((logit_N > 0) == (label_N > 0.5))[paired].float().mean()))
        read.append([round(term.item(), 2) for term in terms])
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
