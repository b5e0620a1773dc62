"""What the made world knows of a query and a document, as numbers that auxiliary heads learn to read.

Whether a document answers a query is one bit, and teaches a model from nothing slowly; which region, brand, kind, fact
and time both speak of is what the bit follows from. Leaves out the heads (train_llm.py, train_reranker.py).
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from chuxin.sample import pools
from chuxin.sample.training.calls import Document, answers
from chuxin.sample.training.forms import Written
from chuxin.sample.world import DOMAINS, Entity

UNKNOWN = -100  # what torch's cross entropy leaves out
COPIES = 2  # what a query token shares with the document: itself, itself behind its neighbour

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


def copies(query: Sequence[int], document: Sequence[int]) -> list[tuple[float, float]]:
    """For each token of a query: does it stand in the document, does it stand there behind the same neighbour."""
    alone, behind = set(document), set(itertools.pairwise(document))
    before = (-1, *query[:-1])
    return [(float(at in alone), float((last, at) in behind)) for last, at in zip(before, query, strict=True)]
