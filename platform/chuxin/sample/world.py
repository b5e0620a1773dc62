"""Entities of the made world, their facts, and the passages that tell them.

An entity is (domain, index): everything about it follows from those two and the seed, so a world of any
size streams in constant memory and two runs agree byte for byte. The first `held_out` indices of a domain
belong to the benchmarks; training starts after them. Leaves out queries (queries.py) and files (files.py).
"""

import itertools
import math
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from chuxin.sample import pools
from chuxin.sample.config import SampleConfig
from chuxin.sample.domains import (
    agriculture,
    automobile,
    education,
    environment,
    film,
    finance,
    food,
    history,
    law,
    medicine,
    shopping,
    sport,
    technology,
    travel,
)
from chuxin.sample.grammar import PERSON, Attribute, Domain, Word

KNOWLEDGE = tuple(
    module.DOMAIN
    for module in (medicine, law, history, education, environment, agriculture, sport, film)
)
PRODUCTS = tuple(module.DOMAIN for module in (finance, food, travel, technology, shopping, automobile))
BENCHMARKS = {"sample-knowledge": KNOWLEDGE, "sample-products": PRODUCTS}
DOMAINS = KNOWLEDGE + PRODUCTS

SHORTEST_PASSAGE = 40  # code points
JOINERS = ("", "市", "·")  # what stands between region and brand in a written name
# Sentences that tell no fact, of the domain and of all domains. They are drawn per entity: its passages are
# alike in length, so that BM25 does not miss a keyword query's answer for its length.
FILLERS = (0, 1, 1, 2, 2)
BACKGROUND = (*[0] * 14, 1, 1, 2, 3)
MOST_WHENS = 4
FEWEST_PASSAGES = 6  # an entity has 2 to MOST_WHENS whens and 3 topics

NUMBER = re.compile(r"#(\d+)-(\d+)/(\d+)#")


class Entity(NamedTuple):
    """One thing of the made world: its name, and what people call it instead."""

    domain: Domain
    index: int
    name: str
    written: tuple[str, ...]
    """The forms of the name in passages. Without them a tokenizer fitted to a small world makes one piece of
    each whole name, which no unseen entity shares."""
    region: str
    nickname: str
    aliases: tuple[str, ...]
    """The nickname, two forms that keep the name of brand or region, for half the entities the short form."""
    short: str
    fillers: int
    background: int
    whens: tuple[Word, ...]


class Passage(NamedTuple):
    """One passage. `told` are its facts; `varying` is the one that differs between the entity's whens."""

    entity: Entity
    topic: int
    when: Word
    told: tuple[Attribute, ...]
    varying: Attribute
    text: str

    @property
    def title(self) -> str:
        """A heading that names the field, not the entity."""
        return f"{self.entity.domain.title}：{self.entity.domain.topics[self.topic].name}"


def draws(seed: int, *key: object) -> random.Random:
    """The random numbers of one key; text seeds are hashed by SHA-512, so PYTHONHASHSEED plays no part."""
    return random.Random("/".join(str(part) for part in (seed, *key)))


def choose(rng: random.Random, variants: str) -> str:
    """One of the variants separated by `|`."""
    return rng.choice(variants.split("|"))


def held_out(config: SampleConfig) -> int:
    """How many entities of each domain the benchmarks keep: enough if each had the fewest passages."""
    return max(math.ceil(config.benchmark_passages / (FEWEST_PASSAGES * len(d))) for d in BENCHMARKS.values())


def entity(seed: int, domain: Domain, index: int) -> Entity:
    """Entity number `index` of a domain.

    Region, brand and kind are the index modulo three pairwise coprime counts (brand in steps of its own in
    each domain), so every combination occurs once before a series number tells the next round apart, and
    any few dozen neighbours cover every component.
    """
    regions, brands, kinds = pools.REGIONS, pools.BRANDS, domain.kinds
    rng = draws(seed, "domain", domain.key)
    shift, step, other_shift = rng.randrange(len(regions)), rng.randrange(2, len(brands)), rng.randrange(997)
    region = regions[(index + shift) % len(regions)]
    brand = brands[(index * step + other_shift) % len(brands)]
    kind = kinds[index % len(kinds)]
    series = index // (len(regions) * len(brands) * len(kinds))
    number = f"{series + 1}号" if series else ""
    rng = draws(seed, "entity", domain.key, index)
    region_called, brand_called = rng.sample(region.asked, 2), rng.sample(brand.asked, 2)
    nickname = f"{region_called[0]}{brand_called[0]}{number}{kind.asked}"
    short = f"{region.said[0]}{brand.said[0]}{number}{kind.short}"
    aliases = (
        nickname,
        f"{region_called[1]}{brand.said}{number}{kind.asked}",
        f"{region.said}{brand_called[1]}{number}{kind.asked}",
        *((short,) if rng.random() < 0.5 else ()),
    )
    name, *others = (
        domain.pattern.format(r=region.said + joiner, b=brand.said + number, t=kind.said)
        for joiner in JOINERS
    )
    return Entity(
        domain=domain,
        index=index,
        name=name,
        written=(name, *others),
        region=region.said,
        nickname=nickname,
        aliases=aliases,
        short=short,
        fillers=rng.choice(FILLERS),
        background=rng.choice(BACKGROUND),
        whens=tuple(rng.sample(domain.whens, rng.randint(2, min(MOST_WHENS, len(domain.whens))))),
    )


def value(rng: random.Random, pool: str) -> str:
    """A value from a pool: a person, or a variant with its numbers drawn."""
    if pool == PERSON:
        return rng.choice(pools.SURNAMES) + rng.choice(pools.GIVEN_NAMES)

    def number(match: re.Match[str]) -> str:
        low, high, step = map(int, match.groups())
        return str(rng.randrange(low, high + 1, step))

    return NUMBER.sub(number, choose(rng, pool))


def passages(seed: int, subject: Entity) -> list[Passage]:
    """All passages of an entity, one for each topic and when: of a topic's, one fact differs by design."""
    written = []
    for number, topic in enumerate(subject.domain.topics):
        rng = draws(seed, "facts", subject.domain.key, subject.index, number)
        facts = {attribute.noun: value(rng, attribute.values) for attribute in topic.attributes}
        varying = rng.choice(topic.attributes)
        used: set[str] = set()
        for when in subject.whens:
            while facts[varying.noun] in used:
                facts[varying.noun] = value(rng, varying.values)
            used.add(facts[varying.noun])
            others = [attribute for attribute in topic.attributes if attribute is not varying]
            rng.shuffle(others)
            told = [varying, *others[: 2 if rng.random() < 0.7 else 1]]
            rng.shuffle(told)
            text = _text(rng, subject, topic.name, when, [
                choose(rng, attribute.says).format(facts[attribute.noun]) for attribute in told
            ])
            written.append(Passage(subject, number, when, tuple(told), varying, text))
    return written


def training_entities(config: SampleConfig) -> Iterator[Entity]:
    """Entities outside the benchmarks, the domains in turn, without end."""
    for index in itertools.count(held_out(config)):
        for domain in DOMAINS:
            yield entity(config.seed, domain, index)


def training_world(config: SampleConfig) -> Iterator[list[Passage]]:
    """The passages of one training entity after another, until `config.passages` are reached."""
    written = 0
    for subject in training_entities(config):
        if written >= config.passages:
            return
        told = passages(config.seed, subject)
        written += len(told)
        yield told


def benchmark_world(config: SampleConfig, name: str) -> list[Passage]:
    """A benchmark's corpus: whole held-out entities of its domains, the domains in turn."""
    corpus: list[Passage] = []
    for index in range(held_out(config)):
        for domain in BENCHMARKS[name]:
            if len(corpus) < config.benchmark_passages:
                corpus += passages(config.seed, entity(config.seed, domain, index))
    return corpus


def _text(rng: random.Random, subject: Entity, topic: str, when: Word, told: list[str]) -> str:
    frames = pools.FRAMES_OF_THREE if len(told) == 3 else pools.FRAMES_OF_TWO
    text = rng.choice(frames).format(
        n=rng.choice(subject.written), w=when.said, p=topic, it=subject.domain.pronoun, o=rng.choice(pools.OUTLETS),
        **dict(zip("abc", told, strict=False)),
    )
    fillers = rng.sample(subject.domain.fillers, len(subject.domain.fillers))
    for _ in range(subject.fillers):
        text += fillers.pop()
    for sentence in rng.sample(pools.BACKGROUND, subject.background):
        text += sentence.format(r=subject.region)
    while len(text) < SHORTEST_PASSAGE:
        text += fillers.pop()
    return text
