"""Documents of the made world: pages about one entity, pages of questions and answers, round-ups of a field.

Each passage is a paragraph of exactly one page, so splitting matters and a clean world holds no duplicates.
Pages introduce aliases and quote queries, which puts the words of queries into raw text too, as on the web.
"""

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from chuxin.sample import pools
from chuxin.sample.config import SampleConfig
from chuxin.sample.queries import query
from chuxin.sample.world import Passage, draws

ROUND_UP_OF = 4
ROUND_UP_SHARE = 0.15


class Document(NamedTuple):
    """A page. `fault` names what was planted in it, empty for a clean page."""

    title: str
    text: str
    fault: str = ""


def documents(config: SampleConfig, world: Iterable[list[Passage]]) -> Iterator[Document]:
    """Pages that hold every passage of the world once. Memory: at most a round-up's passages a domain."""
    waiting: dict[str, list[Passage]] = {}
    for told in world:
        subject = told[0].entity
        rng = draws(config.seed, "documents", subject.domain.key, subject.index)
        told = rng.sample(told, len(told))
        if rng.random() < ROUND_UP_SHARE:
            waiting.setdefault(subject.domain.key, []).append(told.pop())
            if len(waiting[subject.domain.key]) == ROUND_UP_OF:
                yield _round_up(waiting.pop(subject.domain.key))
        while told:
            take = rng.randint(2, 5)
            part, told = told[:take], told[take:]
            yield _questions(rng, part) if rng.random() < 0.3 else _portrait(rng, part)
    for rest in waiting.values():
        yield _round_up(rest)


def introduction(rng: random.Random, passage: Passage) -> str:
    """One sentence that ties an entity's name to its alias."""
    subject = passage.entity
    return rng.choice(pools.INTRODUCTIONS).format(
        n=subject.name, x=rng.choice(subject.aliases), y=subject.short, r=subject.region
    )


def _portrait(rng: random.Random, part: list[Passage]) -> Document:
    paragraphs = [passage.text for passage in part]
    if rng.random() < 0.6:
        paragraphs.insert(0, introduction(rng, part[0]))
    topics = "、".join(dict.fromkeys(p.entity.domain.topics[p.topic].name for p in part))
    return Document(f"{part[0].entity.name}：{topics}", "\n".join(paragraphs))


def _questions(rng: random.Random, part: list[Passage]) -> Document:
    form = rng.choice(pools.ANSWERS)
    queries = [query(rng, passage, paraphrase_share=1.0).text for passage in part]
    answers = [form.format(q=q, t=passage.text) for q, passage in zip(queries, part, strict=True)]
    return Document(f"{part[0].entity.name}问答", "\n".join(answers))


def _round_up(part: list[Passage]) -> Document:
    return Document(
        f"{part[0].entity.domain.title}消息汇编（{part[0].entity.region}等地）",
        "\n".join(passage.text for passage in part),
    )
