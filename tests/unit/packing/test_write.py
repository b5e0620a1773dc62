"""The plan's layout: row groups by batch and slice, rows round robin, figures as counted by hand."""

import numpy as np
import pyarrow as pa
import pytest

from chuxin.packing import write
from chuxin.packing.plan import plan_groups
from chuxin.packing.plan_texts import plan_texts
from chuxin.packing.tokens import TOKEN_GROUPS, TOKEN_TEXTS, as_groups
from chuxin.packing.write import Figures, group_slices, reversed_bits, text_slices
from chuxin.schema import PLAN_GROUPS, PLAN_TEXTS


def token_groups(count: int) -> pa.Table:
    def passage(number: int, score: float | None) -> dict:
        ids = list(range(number % 7 + 3))
        return {"passage_id": number, "text_hash": number, "token_ids": ids, "score": score}

    rows = [
        {"bucket": 0, "query_id": i, "query_hash": 50_000 + i, "source": "ab"[i % 2], "query_ids": [0, i, 2],
         "positives": [passage(1000 + i, None)], "negatives": [passage(2000 + 9 * i + n, n / 2) for n in range(i % 3)]}
        for i in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, TOKEN_GROUPS)


def test_group_row_groups_are_batches_cut_into_slices() -> None:
    table = token_groups(150)
    groups = as_groups(table, {})
    plan = plan_groups(groups, group_size=3, batch_size=10, seed=1, epoch=4, bucket=0)
    figures = Figures()
    parts = list(figures.watch(group_slices(table, plan.batches, 4, 4)))
    own = {row["query_id"]: row for row in table.to_pylist()}
    assert all(part.schema.equals(PLAN_GROUPS) for part in parts)
    assert [part["batch"][0].as_py() for part in parts] == list(range(len(plan.batches)))
    seen: dict[int, list[tuple[int, dict]]] = {}
    for part in parts:
        for row in part.to_pylist():
            assert row["epoch"] == 4 and row["row"] % 4 == row["slice"]
            seen.setdefault(row["batch"], []).append((row["row"], row))
    for index, batch in enumerate(plan.batches):
        rows = [row for _, row in sorted(seen[index], key=lambda pair: pair[0])]
        assert [row["query_id"] for row in rows] == groups.id_N[batch.group_R].tolist()
        negative = np.split(batch.negative_K, np.cumsum(batch.count_R)[:-1])
        for row, planned in zip(rows, negative, strict=True):
            source = own[row["query_id"]]
            assert row["query_ids"] == source["query_ids"] and row["query_hash"] == source["query_hash"]
            assert row["lengths"] == [len(row["query_ids"]), *(len(p["token_ids"]) for p in row["passages"])]
            assert row["passages"][0] == source["positives"][0]
            negatives = groups.negatives.id_P[planned].tolist()
            assert [p["passage_id"] for p in row["passages"][1:]] == negatives
            assert all(p in source["negatives"] for p in row["passages"][1:])
    rows = [row for batch in seen.values() for _, row in batch]
    lengths = [len(row["query_ids"]) for row in rows] + [len(p["token_ids"]) for r in rows for p in r["passages"]]
    facts = figures.facts(len(plan.batches))
    assert facts["rows"] == 150 - plan.alone and facts["tokens"] == sum(lengths)
    assert facts["longest"] == max(lengths) and facts["max_token_id"] == 149
    assert facts["max_row"] == "query_id 149" and facts["sources"] == ["a", "b"]
    assert facts["without_negatives"] in {f"query_id {row['query_id']}" for row in rows if len(row["passages"]) == 1}
    pairs = {f"query_id {row['query_id']}, passage_id {p['passage_id']}": len(row["query_ids"]) + len(p["token_ids"])
             for row in rows for p in row["passages"]}  # fmt: skip
    assert facts["longest_pair"] == max(pairs.values()) == pairs[facts["longest_pair_row"]]
    # Positives of this table have no score; of a group of one passage that is all there is.
    assert facts["scored_groups"] == 0
    named = next(row for row in rows if facts["longest_row"].startswith(f"query_id {row['query_id']}, "))
    passage_id = int(facts["longest_row"].split()[-1])
    assert [len(p["token_ids"]) for p in named["passages"] if p["passage_id"] == passage_id] == [facts["longest"]]
    assert sum(figures.histograms["query_tokens"]) == len(rows)
    assert 0 < facts["padding_share"] < 0.6


@pytest.mark.parametrize("tokens", [1, 60, 10**6])
def test_row_groups_hold_whole_slices_of_one_batch_until_they_have_their_tokens(
    monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr(write, "ROW_GROUP_TOKENS", tokens)
    table = token_groups(150)
    groups = as_groups(table, {})
    plan = plan_groups(groups, group_size=3, batch_size=21, seed=1, epoch=4, bucket=0)
    parts = list(group_slices(table, plan.batches, 4, 8))
    owner: dict[tuple[int, int], int] = {}
    for index, part in enumerate(parts):
        places = list(zip(part["batch"].to_pylist(), part["slice"].to_pylist(), strict=True))
        assert len({batch for batch, _ in places}) == 1
        assert all(owner.setdefault(place, index) == index for place in places)
        counts = np.add.accumulate([sum(lengths) for lengths in part["lengths"].to_pylist()])
        first_of_last_slice = next(i for i, place in enumerate(places) if place == places[-1])
        assert first_of_last_slice == 0 or counts[first_of_last_slice - 1] < tokens
    assert len(parts) == (len(owner) if tokens == 1 else len(plan.batches)) or tokens == 60


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16])
def test_slices_of_a_rank_stand_together(world: int) -> None:
    order = np.argsort(reversed_bits(np.arange(64)))
    changes = np.count_nonzero(np.diff(order % world))
    assert changes == world - 1


def test_text_row_groups() -> None:
    rows = [{"bucket": 0, "passage_id": i, "offset": i % 2, "source": "s", "token_ids": list(range(3 + i % 5))}
            for i in range(40)]  # fmt: skip
    table = pa.Table.from_pylist(rows, TOKEN_TEXTS)
    columns = (table[name].to_numpy() for name in ("passage_id", "offset"))
    lengths = table["token_ids"].combine_chunks().value_lengths().to_numpy()
    batches = plan_texts(*columns, lengths, lengths * 0 + 1.0, tokens_per_batch=30, seed=1, epoch=2, bucket=0)
    figures = Figures()
    planned = pa.concat_tables(figures.watch(text_slices(table, batches, 2, 3)))
    assert planned.schema.equals(PLAN_TEXTS) and len(planned) == 40
    for row in planned.to_pylist():
        assert row["passage_id"] == rows[batches[row["batch"]][row["row"]]]["passage_id"]
        assert row["token_ids"] == rows[row["passage_id"]]["token_ids"] and row["slice"] == row["row"] % 3
        assert row["length"] == len(row["token_ids"])
    assert figures.facts(len(batches))["tokens"] == lengths.sum()


def test_an_empty_plan_has_no_row_groups() -> None:
    table = TOKEN_GROUPS.empty_table()
    figures = Figures()
    assert list(figures.watch(group_slices(table, [], 0, 4))) == []
    assert figures.facts(0)["rows"] == 0


def test_groups_whose_passages_all_have_a_score_are_counted() -> None:
    def passages(*scores: float | None) -> list[dict]:
        return [{"passage_id": n, "text_hash": n, "token_ids": [0, 2], "score": score}
                for n, score in enumerate(scores)]  # fmt: skip

    groups = [(0.5, 1.0), (0.0,), (None, 1.0), (1.0, None), (None,), (1.0, float("nan")), (3.0, 2.0, 1.0)]
    rows = [{"epoch": 0, "batch": n // 4, "slice": 0, "row": n % 4, "query_id": n, "source": "a", "query_hash": n,
             "query_ids": [0, 2], "lengths": [2] * (1 + len(scores)), "passages": passages(*scores)}
            for n, scores in enumerate(groups)]  # fmt: skip
    table, figures = pa.Table.from_pylist(rows, PLAN_GROUPS), Figures()
    assert list(figures.watch(iter([table.slice(0, 4), table.slice(4)])))
    told = figures.facts(2)
    # With a margin learn those whose positive, the first, and another passage have a score.
    assert (told["scored_groups"], told["margin_groups"], told["kind"]) == (3, 2, "groups")
