"""What the sample LLM is taught: the synthesis line's calls over documents of the made world, with their answers.

The prompts are the synthesis line's own files, read as data; the words for kinds and lengths stand here too, and a
test holds both equal to chuxin.synthesis.render. All entities come from a world of a seed of its own, less every name
that the recipes' worlds hold out. Leaves out tokens and tensors (trees.py).
"""

import functools
import json
import math
import random
import re
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from chuxin.sample import pools, queries
from chuxin.sample.defects import RARE_SENTENCES, SHORT_LINES
from chuxin.sample.documents import introduction
from chuxin.sample.grammar import Attribute, Domain
from chuxin.sample.training.faults import spoilt
from chuxin.sample.training.forms import (
    DIFFICULTIES,
    FRAMES,
    LENGTHS,
    TALK,
    Written,
    fragment,
    subjectless,
    two_intents,
    without_names,
    write,
)
from chuxin.sample.training.personas import CATEGORIES, FORMS, PERSONAS
from chuxin.sample.world import DOMAINS, Entity, Passage, entity, passages

SEED = 4004
ENTITIES = 9102  # a domain: every combination of 37 regions, 41 brands and 6 kinds once
HELD_OUT = ((7, 13), (3, 5))
"""Seeds of the recipes' worlds, and how many entities of each domain their benchmarks hold out at least."""

KIND_WORDS = dict(zip(FRAMES, ("问题", "关键词", "标题", "论断", "口语", "商品"), strict=True))
DIFFICULTY_WORDS = dict(zip(DIFFICULTIES, "易中难", strict=True))
LENGTH_WORDS = dict(zip(LENGTHS, "短中长", strict=True))
KIND_WEIGHTS = (3, 2, 2, 2, 3, 2)
LONGEST_DOCUMENT = 320
RICH, ANSWERED = 2, 12  # calls about a document; an `answered` one costs some 25 tokens behind the document
YES, NO = "是", "否"
FIELD = re.compile(r"\{([a-z]+)\}")
Ask = tuple[str, str, str]


class Call(NamedTuple):
    """One call: its prompt and the answer, and what a query that it shows beside a document asks."""

    name: str
    prompt: str
    answer: str
    query: Written | None = None


class Document(NamedTuple):
    """A text as an LLM sees it, the passages that stand in it whole, and the text without names."""

    text: str
    told: tuple[Passage, ...]
    masked: str


@functools.cache
def template(name: str) -> str:
    """A prompt file of the synthesis line."""
    file = resources.files("chuxin").joinpath("synthesis", "prompts", f"{name}.txt")
    return file.read_text(encoding="utf-8").rstrip("\n")


def render(name: str, **fields: str | int) -> str:
    """A prompt with its fields filled in."""
    return FIELD.sub(lambda found: str(fields[found[1]]), template(name))


def describe(asks: Sequence[Ask]) -> str:
    """The asks of a rich call as its prompt lists them."""
    return "；".join(
        f"{i}.{KIND_WORDS[kind]}，{DIFFICULTY_WORDS[difficulty]}，{LENGTH_WORDS[length]}"
        for i, (kind, difficulty, length) in enumerate(asks, 1)
    )


@functools.cache
def held_out_names() -> frozenset[str]:
    """The names of all entities that the recipes' worlds hold out."""
    return frozenset(
        entity(seed, domain, index).name for seed, count in HELD_OUT for domain in DOMAINS for index in range(count)
    )


def training_entity(rng: random.Random, domain: Domain | None = None) -> Entity:
    """Draws an entity that no recipe's world holds out."""
    domain = domain or rng.choice(DOMAINS)
    while (drawn := entity(SEED, domain, rng.randrange(ENTITIES))).name in held_out_names():
        pass
    return drawn


def neighbour(rng: random.Random, subject: Entity) -> Entity:
    """An entity of the same domain that shares two of region, brand and kind."""
    counts = (len(pools.REGIONS), len(pools.BRANDS), len(subject.domain.kinds))
    out = rng.randrange(3)
    step = math.prod(count for number, count in enumerate(counts) if number != out)
    while True:
        index = (subject.index + step * rng.randrange(1, counts[out])) % ENTITIES
        other = entity(SEED, subject.domain, index)
        if other.name not in held_out_names():
            return other


def document(rng: random.Random, told: Sequence[Passage]) -> Document:
    """A text that tells some passages, as curated pages do: with introductions, questions, cut ends."""
    paragraphs, form = [], rng.choice(pools.ANSWERS) if rng.random() < 0.2 else ""
    if not form and rng.random() < 0.3:
        paragraphs.append(introduction(rng, told[0]))
    whole: list[Passage] = []
    for passage in told:
        query = queries.query(rng, passage, 1.0).text if form else ""
        paragraph = form.format(q=query, t=passage.text) if form else passage.text
        if whole and sum(map(len, (*paragraphs, paragraph))) > LONGEST_DOCUMENT:
            break
        paragraphs.append(paragraph)
        whole.append(passage)
    if rng.random() < 0.03:
        paragraphs.append(rng.choice((*RARE_SENTENCES, *TALK, f"（转载第{rng.randrange(3000)}号，版权归原作者）")))
    text = "\n".join(paragraphs)
    masked = without_names(text, {passage.entity: None for passage in whole})
    return Document(text, tuple(whole), masked)


def ask(rng: random.Random) -> Ask:
    """Draws what a query shall be."""
    kind = rng.choices(tuple(FRAMES), KIND_WEIGHTS)[0]
    return kind, rng.choice(DIFFICULTIES), rng.choices(tuple(LENGTHS), (1, 2, 2))[0]


def query_of(rng: random.Random, passage: Passage, masked: str = "") -> Written:
    """A good query for a passage; three in four ask for the fact that sets it apart."""
    attribute = passage.varying if rng.random() < 0.75 else rng.choice(passage.told)
    return write(rng, passage, attribute, ask(rng), masked)


def rich(rng: random.Random, page: Document, asks: Sequence[Ask]) -> Call:
    """The call that writes several queries; each asks for another fact as long as there are some."""
    facts = [(passage, attribute) for passage in page.told for attribute in passage.told]
    weights = [3 if attribute is passage.varying else 1 for passage, attribute in facts]
    texts: list[str] = []
    for one in asks:
        at = rng.choices(range(len(facts)), weights)[0]
        passage, attribute = facts[at]
        if len(facts) > 1:
            del facts[at], weights[at]
        texts.append(write(rng, passage, attribute, one, page.masked).text)
    prompt = render("rich", passage=page.text, count=len(asks), asks=describe(asks))
    return Call("rich", prompt, json.dumps({"queries": texts}, ensure_ascii=False))


def faithful(rng: random.Random, page: Document) -> list[Call]:
    """The two calls of the faithful mode: category, role and scene; then a query of the category's form."""
    passage = rng.choice(page.told)
    category = CATEGORIES[page.told[0].entity.domain.key]
    role, scene = rng.choice(PERSONAS[page.told[0].entity.domain.key])
    persona = {"category": category, "role": role, "scene": scene}
    kind = FORMS[category]
    length = rng.choices(("short", "medium"), (1, 3))[0]
    attribute = passage.varying if rng.random() < 0.75 else rng.choice(passage.told)
    query = write(rng, passage, attribute, (kind, rng.choice(DIFFICULTIES), length), page.masked)
    return [
        Call("persona", render("persona", passage=page.text), json.dumps(persona, ensure_ascii=False)),
        Call("query", render("query", passage=page.text, form=KIND_WORDS[kind], **persona),
             json.dumps({"query": query.text}, ensure_ascii=False)),
    ]  # fmt: skip


def answers(page: Document, query: Written) -> bool:
    """Whether a document tells what a query asks."""
    return any(
        passage.entity == query.subject and query.attribute in passage.told and query.when in ("", passage.when.said)
        for passage in page.told
    )


def answered(rng: random.Random, page: Document, others: Sequence[Passage], strangers: Sequence[Passage]) -> Call:
    """The verdict whether a document answers a query: half of its own, else its entity's or others' queries."""
    draw = rng.random()
    source = rng.choice(page.told if draw < 0.5 or not others else others if draw < 0.8 else strangers)
    if rng.random() < 0.6:
        query = query_of(rng, source, page.masked)
    else:
        found, attribute = plain_query(rng, source)
        query = Written(found, source.entity, attribute, source.when.said, "", "", "")
    verdict = YES if answers(page, query) else NO
    return Call("answered", render("answered", passage=page.text, query=query.text), verdict, query)


def gate(rng: random.Random, page: Document | None, strangers: Sequence[Passage]) -> Call:
    """The verdict whether a text is worth writing queries for: a document is, what `spoilt` makes is not."""
    text = page.text if page else spoilt(rng, strangers)
    return Call("gate", render("gate", passage=text), YES if page else NO)


def verdict(rng: random.Random, name: str, passage: Passage, good: bool) -> Call:
    """A verdict on a query alone: `standalone`, `searchable` or `single_intent`, on a good query or a planted fault."""
    return Call(name, render(name, query=verdict_query(rng, name, passage, good)), YES if good else NO)


def verdict_query(rng: random.Random, name: str, passage: Passage, good: bool) -> str:
    """A query that a criterion accepts, or one that it has to refuse."""
    if good:
        other = name != "single_intent" and rng.random() < 0.1
        if other:
            return two_intents(rng, passage, *rng.sample(passage.told, 2))
        return query_of(rng, passage).text if rng.random() < 0.7 else plain_query(rng, passage)[0]
    if name == "single_intent":
        return two_intents(rng, passage, *rng.sample(passage.told, 2))
    if name == "standalone" and rng.random() < 0.7:
        return subjectless(rng, passage, rng.choice(passage.told))
    if name == "searchable" and rng.random() < 0.6:
        fillers = (*passage.entity.domain.fillers, *pools.BACKGROUND, *TALK, *SHORT_LINES)
        return rng.choice(fillers).format(r=passage.entity.region, n=rng.randrange(99)).rstrip("。")
    return fragment(rng, query_of(rng, passage).text)


def lesson(rng: random.Random) -> tuple[Document, list[Call]]:
    """A document and calls about it and about single queries, a few of each sort."""
    subject = training_entity(rng)
    mine = passages(SEED, subject)
    rng.shuffle(mine)
    stranger = neighbour(rng, subject) if rng.random() < 0.5 else training_entity(rng, subject.domain)
    strangers = passages(SEED, stranger)
    size = rng.choices((1, 2, 3, 4), (10, 6, 3, 1))[0]
    taken = mine[:size]
    if rng.random() < 0.08:
        taken = [taken[0], rng.choice(passages(SEED, training_entity(rng, subject.domain))), rng.choice(strangers)]
    page = document(rng, taken)
    others = [passage for passage in mine if passage not in page.told]
    calls = [rich(rng, page, [ask(rng) for _ in range(rng.choices((1, 2, 3), (1, 4, 2))[0])]) for _ in range(RICH)]
    calls += [answered(rng, page, others, strangers) for _ in range(ANSWERED)]
    if rng.random() < 0.25:
        calls += faithful(rng, page)
    if rng.random() < 0.3:
        calls.append(gate(rng, page, strangers))
    calls += [
        verdict(rng, name, rng.choice(mine), rng.random() < 0.5)
        for name in ("standalone", "searchable", "single_intent")
        if rng.random() < 0.5
    ]
    if rng.random() < 0.3:
        calls.append(gate(rng, None, strangers))
    return page, calls


def plain_query(rng: random.Random, passage: Passage) -> tuple[str, Attribute]:
    """A query as the labelled pairs have them, of one fact, and the fact."""
    attribute = passage.varying if rng.random() < 0.75 else rng.choice(passage.told)
    alone = passage._replace(told=(attribute,), varying=attribute)
    return queries.query(rng, alone, 0.7).text, attribute
