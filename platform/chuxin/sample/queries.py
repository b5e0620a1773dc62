"""Queries of the made world.

A *paraphrase* query shares next to nothing with its passage: it calls the entity by an alias, the time or
version by other words, and asks for a fact in other words than the passage tells it. A *keyword* query is
what BM25 answers well: the name, the time and one or two facts' own nouns. Leaves out who
gets which (files.py).
"""

import random
from typing import NamedTuple

from chuxin.sample import pools
from chuxin.sample.config import SampleConfig
from chuxin.sample.world import Passage, benchmark_world, choose, draws

PARAPHRASE = "paraphrase"
KEYWORD = "keyword"
PLAIN_WHEN_SHARE = 0.2  # of the paraphrase queries name the time or version as the passage does


class Query(NamedTuple):
    """A query, what kind it is, and the one passage that answers it."""

    text: str
    kind: str
    passage: Passage


class Benchmark(NamedTuple):
    """A BEIR benchmark in memory: a passage's corpus id follows from its place, see `corpus_id`."""

    name: str
    corpus: list[Passage]
    queries: list[Query]
    gold: list[int]
    """For each query, the place of its passage in `corpus`."""

    def corpus_id(self, place: int) -> str:
        """The `_id` of the passage at a place of the corpus."""
        return f"{self.name}-p{place:05d}"

    def query_id(self, place: int) -> str:
        """The `_id` of the query at a place of the queries."""
        return f"{self.name}-q{place:05d}"


def query(rng: random.Random, passage: Passage, paraphrase_share: float) -> Query:
    """One query for a passage; three in four ask for the fact that sets it apart from its neighbours."""
    asked = passage.varying if rng.random() < 0.75 else rng.choice(passage.told)
    if rng.random() < paraphrase_share:
        text = rng.choice(pools.QUERY_FRAMES).format(
            x=rng.choice((passage.entity.nickname, *passage.entity.aliases)),
            w=passage.when.said if rng.random() < PLAIN_WHEN_SHARE else rng.choice(passage.when.asked),
            q=choose(rng, asked.asks),
        )
        return Query(text, PARAPHRASE, passage)
    nouns = [asked.noun, *(other.noun for other in passage.told if other is not asked)]
    keywords = " ".join(nouns[: rng.choice((1, 2))])
    text = rng.choice(pools.KEYWORD_FRAMES).format(n=passage.entity.name, w=passage.when.said, k=keywords)
    return Query(text, KEYWORD, passage)


def training_queries(config: SampleConfig, passage: Passage) -> list[Query]:
    """None, one or two queries for a training passage."""
    subject = passage.entity
    rng = draws(config.seed, "queries", subject.domain.key, subject.index, passage.topic, passage.when.said)
    if rng.random() >= config.pair_share:
        return []
    first = query(rng, passage, config.paraphrase_share)
    if rng.random() >= 0.1:
        return [first]
    second = query(rng, passage, config.paraphrase_share)
    return [first] if second.text == first.text else [first, second]


def benchmark(config: SampleConfig, name: str) -> Benchmark:
    """A benchmark: its corpus in shuffled order and at most one query a passage, all texts different."""
    rng = draws(config.seed, "benchmark", name)
    corpus = benchmark_world(config, name)
    rng.shuffle(corpus)
    queries: list[Query] = []
    gold: list[int] = []
    seen: set[str] = set()
    for place in rng.sample(range(len(corpus)), len(corpus)):
        written = query(rng, corpus[place], config.paraphrase_share)
        if len(queries) < config.benchmark_queries and written.text not in seen:
            seen.add(written.text)
            queries.append(written)
            gold.append(place)
    return Benchmark(name, corpus, queries, gold)

