"""The choice of positives and negatives, against a loop over each group's candidates; draws, margins, round trip."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st

from chuxin.mining.columns import read_columns
from chuxin.mining.config import NegativeRule, PositiveRule, SelectConfig
from chuxin.mining.draws import mix
from chuxin.mining.select import choose, count_selected, select_table
from chuxin.search.store import PassageStore

from .world import candidate, candidates_table, group, passage, store

RULES = SelectConfig("rerank", "mine", seed=3, negatives=NegativeRule(first_rank=1, last_rank=50))


def changed(
    positives: dict[str, Any] | None = None, negatives: dict[str, Any] | None = None, **rest: Any
) -> SelectConfig:
    """RULES with some fields replaced."""
    rules = dataclasses.replace(RULES, positives=dataclasses.replace(RULES.positives, **(positives or {})),
                                negatives=dataclasses.replace(RULES.negatives, **(negatives or {})))  # fmt: skip
    return dataclasses.replace(rules, **rest)


def random_rows(rng: np.random.Generator, groups: int) -> list[dict]:
    """Groups with 0 to 2 own negatives, 1 to 2 own positives and up to 12 mined passages, scores partly missing."""
    rows = []
    for number in range(groups):
        names = rng.permutation(40)[: rng.integers(2, 16)].tolist()
        positives, negatives = names[: rng.integers(1, 3)], names[2 : 2 + rng.integers(0, 3)]
        found = []
        for i in names:
            ranks = {f"{miner}_rank": int(rng.integers(1, 40)) if rng.random() < 0.6 else None
                     for miner in ("dense", "sparse", "bm25")}  # fmt: skip
            score = None if rng.random() < 0.15 else float(np.float32(rng.integers(-6, 8) / 2))
            word = ["yes", "no", None, None, None, None][rng.integers(6)]
            dense = float(rng.integers(-2, 10) / 8)
            found.append(candidate(i, given=i in positives, rerank=score, dense=dense, relabel=word, **ranks))
        rows.append(group(number, f"q{number}", [passage(i, f"p{i}") for i in positives],
                          [passage(i, f"p{i}") for i in negatives], candidates=found))  # fmt: skip
    return rows


def naive(row: dict, config: SelectConfig) -> tuple[list[int], list[int]]:
    """The passage ids chosen for one group, by the rules' own words."""
    positive, negative = config.positives, config.negatives
    own = {p["passage_id"] for p in row["negatives"]}
    score = {c["passage_id"]: c["rerank"] for c in row["candidates"]}
    word = {c["passage_id"]: c["relabel"] if config.use_relabel else None for c in row["candidates"]}
    dense = {c["passage_id"]: c["dense"] for c in row["candidates"]}
    rank = {c["passage_id"]: min((c[f"{m}_rank"] for m in ("dense", "sparse", "bm25") if c[f"{m}_rank"]), default=10**6)
            for c in row["candidates"]}  # fmt: skip
    hashes = {c["passage_id"]: c["text_hash"] for c in row["candidates"]}

    def high(i: int) -> bool:
        return word[i] == "yes" if word[i] else positive.above is None or (score[i] or -99) > positive.above

    def false(i: int) -> bool:
        if word[i]:
            return word[i] == "no"
        return negative.below is None or (score[i] is not None and score[i] < negative.below)

    def low(i: int) -> bool:
        too_low = negative.at_least is not None and score[i] is not None and score[i] < negative.at_least
        return false(i) and (word[i] == "no" or not too_low)

    def by_score(i: int) -> tuple:
        return (-score[i] if score[i] is not None else np.inf, hashes[i])

    given = [c["passage_id"] for c in row["candidates"] if c["given"]]
    stayed = sorted((i for i in given if high(i)), key=by_score)
    best = max((score[i] for i in stayed if score[i] is not None), default=None)
    found = []
    for i in score:
        near = None in (positive.below_given, best, score[i]) or score[i] >= best - positive.below_given
        ranked = positive.first_rank <= rank[i] <= positive.last_rank
        if i not in given and positive.mined and high(i) and near and ranked and (i not in own or word[i] == "yes"):
            found.append(i)
    chosen = (stayed + sorted(found, key=by_score))[: positive.most]
    bases = [dense[i] for i in chosen if i in given] or [dense[i] for i in chosen]
    base = min(bases, default=None)

    def close(i: int) -> bool:
        relative, absolute = negative.relative_margin, negative.absolute_margin
        if base is None:
            return relative is not None or absolute is not None
        near = relative is not None and dense[i] >= base - (1 - relative) * abs(base)
        return near or (absolute is not None and dense[i] > base - absolute)

    known = [i for i in given if word[i] == "no" or (negative.below is not None and false(i))]
    wrong = [i for i in known if i not in chosen] if negative.false_positives else []
    kept = [i for i in score if i in own and i not in given and low(i) and i not in chosen] if negative.own else []
    mined = [i for i in score if i not in given and i not in own and i not in chosen and low(i) and not close(i)
             and negative.first_rank <= rank[i] <= negative.last_rank]  # fmt: skip
    drawn = {i: int(mix(config.seed, row["query_id"], hashes[i])[0]) for i in mined}
    mined.sort(key=by_score if negative.draw == "hardest" else drawn.get)
    order = [*sorted(wrong, key=by_score), *sorted(kept, key=by_score), *mined]
    return chosen, order[: negative.most]


VARIANTS = [
    changed(), changed(use_relabel=False), changed({"above": None}, {"below": None}),
    changed({"mined": False}, {"draw": "hardest", "most": 2}), changed({"below_given": 0.5, "most": 2}, {"own": False}),
    changed({"first_rank": 2, "last_rank": 9}, {"at_least": -1.5, "false_positives": False, "absolute_margin": 0.25}),
    changed({}, {"relative_margin": None, "first_rank": 10, "last_rank": 20}),
]  # fmt: skip


@settings(max_examples=80, deadline=None)
@cases(seed=st.integers(0, 10_000), variant=st.sampled_from(range(len(VARIANTS))))
def test_equals_a_loop_over_groups(seed: int, variant: int) -> None:
    rows = random_rows(np.random.default_rng(seed), 6)
    config, columns = VARIANTS[variant], read_columns(candidates_table(rows))
    choice = choose(columns, np.arange(6), config)
    for number, row in enumerate(rows):
        positives, negatives = naive(row, config)
        for wanted, chosen in ((positives, choice.positive_M), (negatives, choice.negative_M)):
            assert columns.id_N[chosen[columns.row_N[chosen] == number]].tolist() == wanted


def test_a_positive_beyond_the_most_is_no_negative_where_no_bound_says_so() -> None:
    scores = {1: 5.0, 2: 4.0, 3: 3.0, 7: -2.0, 8: -3.0}
    found = [candidate(i, given=i < 7, rerank=score, dense=0.5, dense_rank=i if i >= 7 else None)
             for i, score in scores.items()]  # fmt: skip
    row = group(0, "问", [passage(i, f"p{i}") for i in (1, 2, 3)], [], candidates=found)
    for above, below, negatives in ((None, None, {7, 8}), (0.0, None, {7, 8}), (4.5, 3.5, {3, 7, 8})):
        config = changed({"above": above, "most": 1}, {"below": below, "relative_margin": None, "first_rank": 1})
        columns = read_columns(candidates_table([row]))
        choice = choose(columns, np.arange(1), config)
        assert columns.id_N[choice.positive_M].tolist() == [1]
        assert set(columns.id_N[choice.negative_M].tolist()) == negatives


def test_draws_depend_on_the_seed_and_not_on_the_other_groups(tmp_path: Path) -> None:
    rows = random_rows(np.random.default_rng(1), 20)
    config = changed({"above": None}, {"below": None, "relative_margin": None, "most": 2})
    held, parts = store(tmp_path, [*range(40)]), (rows, rows[7:8])
    whole, alone = (select_table(candidates_table(part), held, config, "f")[0].to_pylist() for part in parts)
    assert whole[7] == alone[0]
    other = select_table(candidates_table(rows), held, dataclasses.replace(config, seed=4), "f")[0].to_pylist()
    assert [row["positives"] for row in whole] == [row["positives"] for row in other]
    assert [row["negatives"] for row in whole] != [row["negatives"] for row in other]


def test_statuses_and_their_counts(tmp_path: Path) -> None:
    def row(number: int, score: float, rank: int | None, negative: float, source: str = "synthetic-a") -> dict:
        found = [candidate(1, given=True, rerank=score, dense=0.9, dense_rank=1, bm25_rank=rank),
                 candidate(2, rerank=negative, dense=0.1, dense_rank=2)]  # fmt: skip
        return group(number, f"q{number}", [passage(1, "p1")], [], source=source, candidates=found)

    rows = [row(0, 2, 3, -1), row(1, 0.5, 3, -1), row(2, 2, 3, 0.5), row(3, 2, 21, -1), row(4, 2, None, -1),
            row(5, 2, None, -1, "labelled")]  # fmt: skip
    config = dataclasses.replace(RULES, round_trip={"bm25": 20})
    groups, _, reasons = select_table(candidates_table(rows), store(tmp_path, [1, 2]), config, "f")
    assert groups["status"].to_pylist() == ["keep", "no_positive", "no_negative", "round_trip", "round_trip", "keep"]
    counts = count_selected(groups, config.score)
    assert counts.kept == 2 and counts.drops == {"no_positive": 1, "no_negative": 1, "round_trip": 2}
    assert counts.by_source["labelled"] == {"keep": 1}
    assert sum(counts.histograms["logit_positives"]) == 2 and reasons["own_positive_between_bounds"] == 1


def test_no_group_and_no_candidate() -> None:
    empty = candidates_table([])
    groups, filled, _ = select_table(empty, PassageStore([]), RULES, "f")
    assert len(groups) == len(filled) == 0 and count_selected(groups, RULES.score).kept == 0
    bare = candidates_table([group(0, "q", [passage(1, "p1")], [], candidates=[])])
    assert select_table(bare, PassageStore([]), RULES, "f")[0]["status"].to_pylist() == ["no_positive"]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"positives": PositiveRule(first_rank=0)}, "positives"), ({"negatives": NegativeRule(9, 3)}, "negatives"),
     ({"positives": PositiveRule(most=0)}, "positives.most"), ({"min_positives": 0}, "min_positives"),
     ({"positives": PositiveRule(above=-1.0)}, "positives.above")],
)  # fmt: skip
def test_rules_that_make_no_sense_are_refused(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(RULES, **change)
