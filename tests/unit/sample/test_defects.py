"""Planting: a period carries each fault once, and a disguised query keeps its match key."""

from collections import Counter
from dataclasses import replace

import pytest

from chuxin.ids import match_key
from chuxin.sample.config import SampleConfig
from chuxin.sample.defects import (
    ADDED,
    FAULTS,
    LEAKED_QUERY_FORMS,
    RARE_SENTENCES,
    disguise,
    leaks,
    malformed,
    plant,
)
from chuxin.sample.documents import Document, documents
from chuxin.sample.queries import benchmark
from chuxin.sample.world import training_world

CONFIG = SampleConfig(seed=5, passages=600, benchmark_passages=60, benchmark_queries=40, leaked_share=0.2)


def clean():
    """The clean pages of a small world."""
    return documents(CONFIG, training_world(CONFIG))


def test_clean_pages_hold_every_passage_once():
    paragraphs = Counter(line for page in clean() for line in page.text.split("\n"))
    for told in training_world(CONFIG):
        for passage in told:
            held = sum(paragraphs[head + passage.text] for head in ("", "热心回复：", "答：", "【解答】"))
            assert held == 1


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_a_period_carries_each_fault_once(share):
    config = replace(CONFIG, planted_share=share)
    pages = list(clean())
    planted = list(plant(config, iter(pages)))
    faults = Counter(page.fault for page in planted)
    period = round(1 / share)
    for fault in FAULTS:
        assert len(pages) // period <= faults[fault] <= -(-len(pages) // period)
    added = sum(faults[make.__name__] for make in ADDED)
    assert len(planted) == len(pages) + added
    assert [page for page in planted if not page.fault] == [
        page for page in pages if page in set(planted)
    ], "clean pages keep their order and their bytes"


def test_nothing_is_planted_at_a_share_of_zero():
    assert list(plant(replace(CONFIG, planted_share=0.0), clean())) == list(clean())


def test_disguised_queries_match_and_differ():
    held_out = benchmark(CONFIG, "sample-products")
    in_pairs, in_pages = leaks(CONFIG, held_out)
    places = {held_out.query_id(place): query.text for place, query in enumerate(held_out.queries)}
    assert Counter(leak.form for leak in in_pairs) == {
        **dict.fromkeys(LEAKED_QUERY_FORMS, 2),
        "gold_pair": 8,
    }
    assert len(in_pages) == 8
    assert len({leak.query_id for leak in (*in_pairs, *in_pages)}) == 24
    keys = {match_key(text) for text in places.values()}
    for leak in in_pairs:
        original = places[leak.query_id]
        if leak.form == "gold_pair":
            assert match_key(leak.query) not in keys
        else:
            assert match_key(leak.query) == match_key(original)
            assert (leak.query == original) == (leak.form == "query_exact")


def test_rare_sentences_hold_characters_outside_the_basic_block():
    for sentence in RARE_SENTENCES:
        assert any(not 0x4E00 <= ord(c) <= 0x9FA5 for c in sentence if c.isalpha())


def test_malformed_lines_hold_no_newline():
    assert all(b"\n" not in malformed(number) for number in range(12))


def test_disguise_of_other_forms_is_the_query():
    assert disguise("query_exact", "甲乙？") == "甲乙？"
    assert Document("题", "文").fault == ""
