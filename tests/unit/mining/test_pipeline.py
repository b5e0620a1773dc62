"""The stages mine, rerank and select from Parquet to closed artifacts, against brute force over all passages."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chuxin.artifacts import Artifact
from chuxin.encoding.engine import Encoder
from chuxin.encoding.pairs import PairScorer
from chuxin.errors import InputError
from chuxin.files import filesystem
from chuxin.mining import pipeline, searcher
from chuxin.mining.config import MineConfig, NegativeRule, PositiveRule, RerankConfig, SelectConfig
from chuxin.mining.inputs import open_store
from chuxin.models.checkpoint import load_model, load_tokenizer, save_model
from chuxin.schema import GROUPS
from chuxin.search.bm25 import BM25
from chuxin.search.heads import Postings
from chuxin.search.store import PassageStore, shard_uris

from .world import corpus, run

KEEP_RANKS = 30


def mine_config(world: Path, model: str, **changes: Any) -> MineConfig:
    settings = {"query_max_len": 16, "passage_max_len": 32, "keep": KEEP_RANKS, "shard_passages": 40,
                "query_block": 4, "spans": 2} | changes  # fmt: skip
    groups = (f"{world}/labelled.parquet", f"{world}/synthetic.parquet")
    return MineConfig(groups=groups, passages=f"{world}/passages-*.parquet", model=model, **settings)


@pytest.fixture(scope="module")
def mined(world: Path, tiny_model: str) -> Artifact:
    return run(world, "mine", pipeline.mine, mine_config(world, tiny_model))


def kept_groups(world: Path) -> list[dict]:
    rows = [row for name in ("labelled", "synthetic") for row in pq.read_table(world / f"{name}.parquet").to_pylist()]
    return [row for row in rows if row["status"] == "keep"]


def test_the_store_holds_every_text_once_by_its_lowest_id(world: Path, mined: Artifact) -> None:
    store = PassageStore(shard_uris(mined))
    ids = np.concatenate([shard.ids_P for shard in store.shards])
    own = {p["passage_id"]: p for row in kept_groups(world) for s in ("positives", "negatives") for p in row[s]}
    corpus_rows = {row["passage_id"]: row for row in corpus() if row["passage_id"] < 500}
    corpus_hashes = {row["text_hash"] for row in corpus_rows.values()}
    lowest: dict[int, int] = {}
    for number, row in sorted(own.items()):
        if row["text_hash"] not in corpus_hashes:
            lowest.setdefault(row["text_hash"], number)
    assert sorted(ids.tolist()) == sorted([*corpus_rows, *lowest.values()])
    assert len(store.shards) > 3 and mined.manifest["facts"]["store_passages"] == len(ids)
    assert mined.manifest["facts"]["repeated_passages"] == 4
    known = [*corpus_rows.values(), *(own[i] for i in lowest.values())]
    assert store.texts(np.array([row["text_hash"] for row in known])) == [row["text"] for row in known]
    assert store.shards[0].dense_PH.dtype == np.float16 and isinstance(store.shards[0].dense_PH, np.memmap)


def test_candidates_are_those_of_brute_force(world: Path, tiny_model: str, mined: Artifact) -> None:
    store = PassageStore(shard_uris(mined))
    hashes = np.concatenate([shard.hashes_P for shard in store.shards])
    texts = store.texts(hashes)
    dense_PH = Encoder(tiny_model, 32, 1000).encode(texts).astype(np.float16).astype(np.float32)
    groups = {row["query_id"]: row for row in kept_groups(world)}
    bm25 = BM25(texts)
    table = mined.read("candidates").to_pylist()
    assert [row["query_id"] for row in table] == list(groups)
    for row in table:
        group = groups[row["query_id"]]
        assert all(row[name] == group[name] for name in ("query", "query_hash", "source", "positives", "lineage"))
        scores_P = Encoder(tiny_model, 16, 1000).encode([group["query"]])[0] @ dense_PH.T
        order = np.argsort(-scores_P, kind="stable")[:KEEP_RANKS]
        lexical, found = (side[0] for side in bm25.search([group["query"]], KEEP_RANKS))
        lexical_rank = {int(hashes[i]): (rank, lexical[rank - 1]) for rank, i in enumerate(found, 1) if i >= 0}
        dense_rank = {int(hashes[i]): rank for rank, i in enumerate(order, 1)}
        own = {p["text_hash"] for side in ("positives", "negatives") for p in group[side]}
        given = {p["text_hash"]: p["passage_id"] for p in group["positives"]}
        expected = (set(dense_rank) | set(lexical_rank) | own) - ({group["query_hash"]} - set(given))
        place = {int(text): i for i, text in enumerate(hashes)}
        candidates = {c["text_hash"]: c for c in row["candidates"]}
        assert len(row["candidates"]) == len(candidates)
        # Of scores within rounding of the last, either may be kept.
        assert all(abs(scores_P[place[t]] - scores_P[order[-1]]) < 1e-5 for t in set(candidates) ^ expected)
        for text, candidate in candidates.items():
            assert candidate["given"] == (text in given)
            assert candidate["passage_id"] == given.get(text, candidate["passage_id"])
            assert candidate["dense"] == pytest.approx(scores_P[place[text]], abs=1e-5)
            assert candidate["bm25_rank"] == lexical_rank.get(text, (None,))[0]
            if text in lexical_rank:
                assert candidate["bm25"] == pytest.approx(lexical_rank[text][1], rel=1e-5)
            rank = candidate["dense_rank"]
            near = scores_P[order[(rank or KEEP_RANKS) - 1]] - scores_P[place[text]]
            assert rank == dense_rank.get(text) or abs(near) < 1e-5
            assert candidate["rerank"] is candidate["relabel"] is candidate["sparse"] is None
        ranks = [c["dense_rank"] or 10**6 for c in row["candidates"]]
        assert ranks == sorted(ranks)


def test_shards_blocks_and_spans_change_nothing(world: Path, tmp_path: Path, tiny_model: str, mined: Artifact) -> None:
    config = mine_config(world, tiny_model, shard_passages=10**6, query_block=100, spans=1)
    whole = run(tmp_path, "whole", pipeline.mine, config)
    assert len(shard_uris(whole)) == 3  # a file of passages each, and the groups' own
    first, second = ({row["query_id"]: {c["text_hash"]: c for c in row["candidates"]} for row in
                      artifact.read("candidates").to_pylist()} for artifact in (mined, whole))  # fmt: skip
    assert first.keys() == second.keys()
    for query, candidates in first.items():
        last = min(c["dense"] for c in candidates.values() if c["dense_rank"])
        for text in candidates.keys() | second[query].keys():
            own, other = candidates.get(text), second[query].get(text)
            if own is None or other is None:  # of scores within rounding of the last, either may be kept
                assert (own or other)["dense"] == pytest.approx(last, abs=1e-5)
                continue
            names = ("passage_id", "given", "bm25_rank")
            assert [own[name] for name in names] == [other[name] for name in names]
            assert own["dense"] == pytest.approx(other["dense"], abs=1e-5)
            assert own["bm25"] is other["bm25"] is None or own["bm25"] == pytest.approx(other["bm25"], rel=1e-5)


def test_a_killed_stage_goes_on_where_it_stopped(
    world: Path, tmp_path: Path, tiny_model: str, mined: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    joins: list[str] = []
    join_miners = pipeline.join_miners

    def dying(*given: Any) -> pa.Table:
        joins.append("join")
        if len(joins) == 3:
            raise KeyboardInterrupt
        return join_miners(*given)

    monkeypatch.setattr(pipeline, "join_miners", dying)
    config = mine_config(world, tiny_model)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "again", pipeline.mine, config)
    again = run(tmp_path, "again", pipeline.mine, config)
    assert len(joins) == 1 + len([p for p in again.partitions() if p["key"].startswith("candidates-")])
    assert again.read("candidates").equals(mined.read("candidates"))
    assert not list(Path(again.uri).rglob("found-*"))  # as large as the candidates, and read by nobody
    for part in again.partitions():
        assert sorted(os.listdir(f"{again.uri}/parts/{part['directory']}")) == part["files"]
    (Path(again.uri) / "manifest.json").unlink()  # killed between that and the end
    assert run(tmp_path, "again", pipeline.mine, config).read("candidates").equals(mined.read("candidates"))


def test_a_search_actor_opens_a_span_once_for_all_blocks(
    world: Path, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, ...]] = []

    def counting(shards: Sequence[str]) -> PassageStore:
        opened.append(tuple(shards))
        return open_store(shards)

    monkeypatch.setattr(searcher, "open_store", counting)
    artifact = run(tmp_path, "mine", pipeline.mine, mine_config(world, tiny_model))
    blocks = {part["key"] for part in artifact.partitions() if part["key"].startswith("search-")}
    assert len(blocks) >= 6 and len(opened) == len(set(opened)) == 2


def test_an_object_store_holds_what_a_local_workspace_does(
    world: Path, tmp_path: Path, tiny_model: str, reranker: str, mined: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where shards are fetched to
    remote = f"memory://{tmp_path.name}"
    found = run(remote, "mine", pipeline.mine, mine_config(world, tiny_model))
    assert found.read("candidates").equals(mined.read("candidates"))
    fs, state = filesystem(f"{found.uri}/state")
    assert not fs.exists(state)
    assert all(uri.startswith("memory://") for uri in shard_uris(found))
    config = RerankConfig("mine", "mine", reranker, query_max_len=16, passage_max_len=32)
    scored = run(remote, "rerank", pipeline.rerank, config, {"mine": found})
    local = run(tmp_path, "rerank", pipeline.rerank, config, {"mine": mined})
    assert scored.read("candidates").equals(local.read("candidates"))


def test_a_lost_group_is_noticed(
    world: Path, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    join_miners = pipeline.join_miners
    monkeypatch.setattr(pipeline, "join_miners", lambda *given: join_miners(*given).slice(1))
    with pytest.raises(RuntimeError, match="the groups read and written differ"):
        run(tmp_path, "mine", pipeline.mine, mine_config(world, tiny_model))


def test_inputs_that_cannot_be_mined_are_refused(world: Path, tmp_path: Path, tiny_model: str) -> None:
    twice = mine_config(world, tiny_model)
    twice = dataclasses.replace(twice, groups=(twice.groups[0], twice.groups[0]))
    with pytest.raises(InputError, match="query_id 0: two groups have this id"):
        run(tmp_path, "twice", pipeline.mine, twice)
    for name in ("a", "b"):
        shutil.copy(min(world.glob("passages-*.parquet")), tmp_path / f"passages-{name}.parquet")
    with pytest.raises(InputError, match=r"passages: passage \d+ is given twice"):
        run(tmp_path, "repeated", pipeline.mine, dataclasses.replace(twice, groups=twice.groups[:1],
                                                                     passages=f"{tmp_path}/passages-*.parquet"))
    rows = pq.read_table(world / "labelled.parquet").to_pylist()
    rows[3]["positives"] = []
    pq.write_table(pa.Table.from_pylist(rows, GROUPS), tmp_path / "labelled.parquet")
    with pytest.raises(InputError, match="labelled.parquet: query_id 3: the group has no positive"):
        empty = dataclasses.replace(twice, groups=(f"{tmp_path}/labelled.parquet",))
        run(tmp_path, "empty", pipeline.mine, empty)
    pq.write_table(pa.Table.from_pylist(rows, GROUPS).drop_columns(["lineage"]), tmp_path / "bare.parquet")
    pq.write_table(pq.read_table(world / "passages-0.parquet", columns=["passage_id", "text"]),
                   tmp_path / "texts.parquet")  # fmt: skip
    with pytest.raises(InputError, match="texts.parquet: the table of passages has no column status, text_hash"):
        bare = dataclasses.replace(twice, groups=twice.groups[:1], passages=f"{tmp_path}/texts.parquet")
        run(tmp_path, "texts", pipeline.mine, bare)
    with pytest.raises(InputError, match="bare.parquet: the table of groups has no column lineage"):
        run(tmp_path, "bare", pipeline.mine, dataclasses.replace(twice, groups=(f"{tmp_path}/bare.parquet",)))
    with pytest.raises(InputError, match="it holds no table `passages`"):
        run(tmp_path, "none", pipeline.mine,
            dataclasses.replace(twice, groups=twice.groups[:1], passages=f"{world}/nothing"))  # fmt: skip


def test_a_sparse_head_that_was_never_trained_is_refused(world: Path, tmp_path: Path, tiny_model: str) -> None:
    with pytest.raises(InputError, match="sparse output was never trained"):
        run(tmp_path, "mine", pipeline.mine, mine_config(world, tiny_model, miners=("dense", "sparse")))


def test_the_sparse_miner_is_that_of_brute_force(world: Path, tmp_path: Path, tiny_model: str) -> None:
    model = load_model(tiny_model)
    model.heads_trained = True
    save_model(model, load_tokenizer(tiny_model), str(tmp_path / "model"))
    config = mine_config(world, str(tmp_path / "model"), miners=("dense", "sparse"), keep=10)
    mined = run(tmp_path, "mine", pipeline.mine, config)
    store = PassageStore(shard_uris(mined))
    hashes = np.concatenate([shard.hashes_P for shard in store.shards])
    postings = Postings(Encoder(config.model, 32, 1000).encode_all(store.texts(hashes)).sparse)
    for row in mined.read("candidates").to_pylist():
        scores_P = postings.scores(Encoder(config.model, 16, 1000).encode_all([row["query"]]).sparse[0])
        score = dict(zip(hashes.tolist(), scores_P, strict=True))
        found = {c["sparse_rank"]: c for c in row["candidates"] if c["sparse_rank"]}
        best = np.sort(scores_P[scores_P > 0])[::-1][:10]
        for rank, candidate in found.items():
            assert candidate["sparse"] == pytest.approx(score[candidate["text_hash"]], abs=1e-5)
            assert candidate["sparse"] == pytest.approx(best[rank - 1], abs=1e-5) and candidate["dense"] is not None
        assert len(best) - 1 <= len(found) <= len(best)  # the query's own text may be missing


def test_reranked_and_selected(tmp_path: Path, reranker: str, mined: Artifact) -> None:
    inputs = {"mine": mined}
    config = RerankConfig("mine", "mine", reranker, query_max_len=16, passage_max_len=32, top_k=9)
    reranked = run(tmp_path, "rerank", pipeline.rerank, config, inputs)
    store, scorer = PassageStore(shard_uris(mined)), PairScorer(reranker, 16, 32, 500)
    before, after = (artifact.read("candidates").to_pylist() for artifact in (mined, reranked))
    for old, new in zip(before, after, strict=True):
        own = {p["text_hash"]: p["text"] for side in ("negatives", "positives") for p in new[side]}
        mined_ones = [c for c in new["candidates"] if c["text_hash"] not in own]
        scored = [c for c in new["candidates"] if c["rerank"] is not None]
        assert set(own) <= {c["text_hash"] for c in scored} and len(scored) == len(own) + min(9, len(mined_ones))
        texts = [own.get(c["text_hash"]) or store.texts([c["text_hash"]])[0] for c in scored]
        index = np.array([[0, i] for i in range(len(texts))])
        np.testing.assert_allclose([c["rerank"] for c in scored], scorer.score([new["query"]], texts, index), atol=1e-4)
        assert [{**c, "rerank": None} for c in new["candidates"]] == old["candidates"]
    histograms = reranked.manifest["histograms"]
    assert sum(histograms["logit_own_positives"]) == sum(c["given"] for row in after for c in row["candidates"])

    scores = [c["rerank"] for row in after for c in row["candidates"] if c["rerank"] is not None]
    low, high = np.quantile(scores, [0.4, 0.6]).tolist()
    rules = SelectConfig("rerank", "mine", seed=1, positives=PositiveRule(above=high),
                         negatives=NegativeRule(first_rank=3, below=low, relative_margin=None, most=4))  # fmt: skip
    selected = run(tmp_path, "select", pipeline.select, rules, {"rerank": reranked, "mine": mined})
    rows = selected.read("groups").to_pylist()
    assert [row["query_id"] for row in rows] == [row["query_id"] for row in before]
    by_text = [{c["text_hash"]: c["rerank"] for c in row["candidates"]} for row in after]
    for row, scores in zip(rows, by_text, strict=True):
        assert all(p["score"] == scores[p["text_hash"]] > high for p in row["positives"])
        assert all(p["score"] == scores[p["text_hash"]] < low for p in row["negatives"])
    statuses = {row["status"] for row in rows}
    assert "keep" in statuses and statuses <= {"keep", "no_positive", "no_negative"}
    manifest = selected.manifest
    assert manifest["rows_in"] == len(rows) == manifest["rows_out"] + sum(manifest["drops"].values())
    assert {"labelled", "synthetic-s"} == set(manifest["facts"]["by_source"])


def test_selecting_by_scores_that_are_not_there_is_refused(tmp_path: Path, mined: Artifact) -> None:
    with pytest.raises(InputError, match="no candidate has a score of a reranker"):
        run(tmp_path, "select", pipeline.select, SelectConfig("mine", "mine", seed=1), {"mine": mined})
    bounds = {"positives": PositiveRule(above=None), "negatives": NegativeRule(1, 30, below=None)}
    config = SelectConfig("mine", "mine", seed=1, score="dense", **bounds)
    rows = run(tmp_path, "dense", pipeline.select, config, {"mine": mined}).read("groups").to_pylist()
    scores = [p["score"] for row in rows for side in ("positives", "negatives") for p in row[side]]
    assert scores and all(-1.001 <= score <= 1.001 for score in scores)


def test_selecting_nothing_is_refused_with_the_reasons(tmp_path: Path, mined: Artifact) -> None:
    bounds = {"positives": PositiveRule(above=None), "negatives": NegativeRule(1, 30, below=-9.0)}
    config = SelectConfig("mine", "mine", seed=1, score="dense", **bounds)
    for _ in range(2):  # the second finds all partitions done, and must not commit either
        with pytest.raises(InputError, match="select: mine: no group is kept: 20 no_negative"):
            run(tmp_path, "select", pipeline.select, config, {"mine": mined})
    assert not (tmp_path / "select" / "manifest.json").exists()


def test_ranks_of_a_miner_that_did_not_run_are_refused(tmp_path: Path, mined: Artifact) -> None:
    bounds = {"positives": PositiveRule(above=None), "negatives": NegativeRule(1, 30, below=None)}
    config = SelectConfig("mine", "mine", seed=1, score="dense", **bounds)
    for number, (change, where) in enumerate([({"rank_by": "sparse"}, "select.rank_by"),
                                              ({"round_trip": {"bm25": 20, "sparse": 9}}, "select.round_trip.sparse")]):
        changed = dataclasses.replace(config, **change)
        with pytest.raises(InputError, match=f"{where}: no candidate of mine has a rank by sparse"):
            run(tmp_path / str(number), "select", pipeline.select, changed, {"mine": mined})
    allowed = dataclasses.replace(config, rank_by="bm25", round_trip={"dense": 30})
    noted = Artifact(mined.uri)
    noted.manifest["config"] = {"keep": KEEP_RANKS}
    assert run(tmp_path, "select", pipeline.select, allowed, {"mine": noted}).manifest["rows_out"]
    # What is ranked behind those that were kept would be dropped, however deep it may be looked for.
    with pytest.raises(InputError, match="select.round_trip.dense: mine keeps the first 30 candidates of a query"):
        deeper = dataclasses.replace(config, round_trip={"dense": KEEP_RANKS + 1})
        run(tmp_path / "deeper", "select", pipeline.select, deeper, {"mine": noted})


def test_a_block_of_queries_is_no_table_of_groups(mined: Artifact) -> None:
    # Whoever looks for groups by the table's name (jobs/why.py) must find rows with a status.
    tables = {table for part in mined.partitions() for table in part["tables"]}
    assert tables == {"own", "block", "candidates"}


def test_a_store_that_is_none_is_refused(tmp_path: Path, mined: Artifact, reranker: str) -> None:
    empty = Artifact(mined.uri)
    empty.manifest = {**mined.manifest, "partitions": [p for p in mined.partitions() if "store" not in p["key"]]}
    config = RerankConfig("mine", "mine", reranker, 16, 32)
    with pytest.raises(InputError, match="it holds no passage store"):
        run(tmp_path, "rerank", pipeline.rerank, config, {"mine": empty})
    half = Artifact(mined.uri)
    stores = [p for p in mined.partitions() if "store" in p["key"]]
    half.manifest = {**mined.manifest, "partitions": [p for p in mined.partitions() if p not in stores[1:]]}
    with pytest.raises(InputError, match="stands in no shard of the store. Give `store` the mine stage"):
        run(tmp_path, "half", pipeline.rerank, config, {"mine": half})
