"""The made world's entities and passages: every combination once, all components known, one fact apart."""

import itertools
from collections import Counter

import pytest

from chuxin.sample import pools
from chuxin.sample.config import SampleConfig
from chuxin.sample.world import (
    BENCHMARKS,
    DOMAINS,
    SHORTEST_PASSAGE,
    benchmark_world,
    entity,
    held_out,
    passages,
    training_world,
)

MICRO = SampleConfig(seed=3, passages=1500, benchmark_passages=150, benchmark_queries=100)
SAMPLE = SampleConfig(seed=7, passages=7000, benchmark_passages=450, benchmark_queries=300)


def asked_words(subject):
    """The components an entity is made of, read from its index: region, brand, kind."""
    region = next(r for r in pools.REGIONS if r.said == subject.region)
    brand = next(b for b in pools.BRANDS if b.said in subject.name and b.said != region.said)
    return region, brand, next(k for k in subject.domain.kinds if k.said in subject.name)


def test_counts_are_pairwise_coprime_and_a_round_holds_every_combination_once():
    regions, brands = len(pools.REGIONS), len(pools.BRANDS)
    for number in (regions, brands):
        assert all(number % k for k in range(2, number))
    for domain in DOMAINS:
        assert len(domain.kinds) < min(regions, brands)
    domain = DOMAINS[0]
    round_of = regions * brands * len(domain.kinds)
    parts = {(i % regions, i * 7 % brands, i % len(domain.kinds)) for i in range(round_of)}
    assert len(parts) == round_of
    first, second = entity(5, domain, 3), entity(5, domain, 3 + round_of)
    assert second.name != first.name
    assert second.name.replace("2号", "") == first.name, "the next round carries a series number"


def test_names_nicknames_and_short_forms_never_meet():
    seen = Counter()
    for domain, index in itertools.product(DOMAINS, range(150)):
        subject = entity(7, domain, index)
        seen.update({*subject.written, *subject.aliases, subject.short})
    assert max(seen.values()) == 1


def test_words_of_queries_are_unambiguous():
    for pool in (pools.REGIONS, pools.BRANDS, *(domain.whens for domain in DOMAINS)):
        words = [word for entry in pool for word in (entry.said, *entry.asked)]
        assert len(words) == len(set(words))
    assert len({r.said[0] for r in pools.REGIONS}) == len(pools.REGIONS)
    assert len({b.said[0] for b in pools.BRANDS}) == len(pools.BRANDS)
    kinds = [word for domain in DOMAINS for kind in domain.kinds for word in (kind.said, kind.asked)]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.key)
def test_facts_are_told_by_their_noun_and_asked_for_without_it(domain):
    asks = Counter()
    for topic in domain.topics:
        for attribute in topic.attributes:
            pairs = {a + b for a, b in itertools.pairwise(attribute.noun)}
            for said in attribute.says.split("|"):
                assert said.count("{}") == 1
                assert attribute.noun in said
            for asked in attribute.asks.split("|"):
                assert not any(pair in asked for pair in pairs), (attribute.noun, asked)
                asks[asked] += 1
    assert max(asks.values()) == 1, "an ask names one fact of its domain"
    for word in (*pools.REGIONS, *pools.BRANDS):
        assert not any(set(word.said) & set(asked) for asked in word.asked), word


def test_passages_of_a_topic_differ_in_the_one_fact_and_have_the_promised_length():
    for told in training_world(MICRO):
        lengths = [len(passage.text) for passage in told]
        assert SHORTEST_PASSAGE <= min(lengths)
        assert max(lengths) <= 300
        assert len({passage.text for passage in told}) == len(told)
        assert len({(passage.topic, passage.when) for passage in told}) == len(told)
        for passage in told:
            assert any(name in passage.text for name in passage.entity.written)
            assert passage.when.said in passage.text
            assert passage.varying in passage.told


def test_an_entity_is_a_function_of_its_key_alone():
    first, again = (passages(3, entity(3, DOMAINS[4], 17)) for _ in range(2))
    assert first == again
    assert passages(4, entity(4, DOMAINS[4], 17)) != first


def test_a_world_has_the_passages_asked_for():
    for wanted in (1, 100, 1500):
        config = SampleConfig(seed=3, passages=wanted, benchmark_passages=150, benchmark_queries=100)
        written = sum(len(told) for told in training_world(config))
        assert wanted <= written < wanted + 12


@pytest.mark.parametrize("config", [MICRO, SAMPLE], ids=["micro", "sample"])
def test_held_out_entities_are_new_combinations_of_known_components(config):
    trained = [told[0].entity for told in training_world(config)]
    corpora = [benchmark_world(config, name) for name in BENCHMARKS]
    kept = {passage.entity.name: passage.entity for corpus in corpora for passage in corpus}
    assert not kept.keys() & {subject.name for subject in trained}
    known = {component for subject in trained for component in asked_words(subject)}
    assert known >= {component for subject in kept.values() for component in asked_words(subject)}
    aliases = "".join(alias for subject in trained for alias in subject.aliases)
    for word in (*pools.REGIONS, *pools.BRANDS):
        assert all(asked in aliases for asked in word.asked), word
    assert held_out(config) * 6 * min(map(len, BENCHMARKS.values())) >= config.benchmark_passages
