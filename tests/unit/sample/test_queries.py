"""The queries: two kinds, one answer each, easy and hard for BM25 as meant."""

import bm25s
import numpy as np
import pytest

from chuxin.sample.config import SampleConfig
from chuxin.sample.queries import KEYWORD, PARAPHRASE, benchmark, training_queries
from chuxin.sample.world import BENCHMARKS, training_world

SAMPLE = SampleConfig(seed=7, passages=7000, benchmark_passages=450, benchmark_queries=300)


def terms(text):
    """Character unigrams and bigrams, letters and digits only."""
    letters = [letter for letter in text if letter.isalnum()]
    return letters + [a + b for a, b in zip(letters, letters[1:], strict=False)]


def bm25_ndcg_at_10(held_out):
    """Mean nDCG@10 by kind of query; ties count against the gold passage."""
    index = bm25s.BM25()
    index.index([terms(passage.text) for passage in held_out.corpus], show_progress=False)
    found = {PARAPHRASE: [], KEYWORD: []}
    for query, gold in zip(held_out.queries, held_out.gold, strict=True):
        scores = index.get_scores(terms(query.text))
        rank = int((scores >= scores[gold]).sum())
        found[query.kind].append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    return {kind: float(np.mean(values)) for kind, values in found.items()}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_bm25_answers_keyword_queries_and_few_paraphrases(name):
    held_out = benchmark(SAMPLE, name)
    assert 450 <= len(held_out.corpus) <= 461
    assert len(held_out.queries) == 300
    assert len({query.text for query in held_out.queries}) == 300
    assert all(held_out.corpus[g] is q.passage for q, g in zip(held_out.queries, held_out.gold, strict=True))
    assert len({query.passage.entity.domain.key for query in held_out.queries}) == len(BENCHMARKS[name])
    paraphrases = sum(query.kind == PARAPHRASE for query in held_out.queries)
    assert 0.6 < paraphrases / 300 < 0.8
    found = bm25_ndcg_at_10(held_out)
    assert 0.15 < found[PARAPHRASE] < 0.4
    assert found[KEYWORD] > 0.85


def test_training_queries_have_the_configured_shares():
    config = SampleConfig(seed=1, passages=2000, benchmark_passages=60, benchmark_queries=10)
    by_passage = [training_queries(config, passage) for told in training_world(config) for passage in told]
    asked = sum(map(bool, by_passage)) / len(by_passage)
    assert asked == pytest.approx(config.pair_share, abs=0.03)
    queries = [query for queries in by_passage for query in queries]
    kinds = [query.kind for query in queries]
    assert kinds.count(PARAPHRASE) / len(kinds) == pytest.approx(config.paraphrase_share, abs=0.04)
    for query in queries:
        subject = query.passage.entity
        if query.kind == KEYWORD:
            assert subject.name in query.text
            assert any(fact.noun in query.text for fact in query.passage.told)
        else:
            assert subject.name not in query.text
            assert any(alias in query.text for alias in subject.aliases)
            assert any(ask in query.text for fact in query.passage.told for ask in fact.asks.split("|"))
