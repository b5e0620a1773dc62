"""The stages mine, rerank and select: which partitions there are, and that every group came through exactly once.

mine: "owners-…" settles who owns a text, "store-…" encodes the passages, "queries-…" the queries, "search-…" runs a
block of queries over a span of shards, "candidates-…" joins a block's spans. rerank and select have one partition a
part of the table they read. Leaves out: what is computed in a partition (the modules beside this one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from chuxin.artifacts import Attempt, add_checksums, checksum, input_files
from chuxin.encoding.pairs import PairScorer
from chuxin.errors import InputError
from chuxin.files import fetched, open_parquet
from chuxin.mining.config import MineConfig, RerankConfig, SelectConfig
from chuxin.mining.find import given_passages
from chuxin.mining.inputs import (
    cut_row_groups,
    cut_rows,
    holds_values,
    kept_ids,
    mined_config,
    open_store,
    read_groups,
    store_of,
)  # fmt: skip
from chuxin.mining.join import join_miners, join_spans
from chuxin.mining.queries import BLOCK, read_block, save_queries
from chuxin.mining.rerank import rerank_table, score_histograms
from chuxin.mining.searcher import SpanSearcher, load_found
from chuxin.mining.select import FILLED, count_selected, select_table
from chuxin.mining.shards import build_corpus_shard, build_own_shard, find_owners
from chuxin.runner import Context
from chuxin.schema import CANDIDATES, GROUPS
from chuxin.search.store import SHARD_PREFIX

SUMMARY = "summary"
OWNER_ROWS = 16_000_000
"""Passages whose owners are settled together: about 0.5 GB."""
GROUP_ROWS = 200_000
"""Groups likewise, whose own texts are held: at 8 passages of 1 KB, 1.6 GB."""
ROWS_A_BATCH = 512
"""Queries of a row group of candidates: 100,000 candidates, about 6 MB."""


def mine(ctx: Context, config: MineConfig) -> None:
    """Builds the passage store and the table `candidates`, one row a group.

    Raises:
        InputError: There are no groups or passages, a group lacks its query or positives, two have one id, or the
            model cannot do what is asked.
        RuntimeError: A group was lost or taken twice.
    """
    run = partial(ctx.draft.map, num_cpus=config.execution.num_cpus)
    computing = partial(run, num_gpus=int(config.execution.use_gpu))
    files = [file for ref in config.groups for file in input_files(ctx, ref, "groups")]
    ids = kept_ids(files, f"{ctx.name}.groups")
    blocks = {f"{i:05d}": item for i, item in enumerate(cut_rows(files, config.query_block))}
    slices = list(cut_row_groups(input_files(ctx, config.passages, "passages"), config.shard_passages))
    model = ctx.resolve(config.model)
    shards = _build_store(ctx, config, slices, list(blocks.values()), model)
    statistics = _statistics(ctx, shards)
    work = {f"queries-{key}": item for key, item in blocks.items()}
    encode = partial(_encode_queries, config, model, list(shards.values()), statistics)
    computing(work, encode, name=f"{ctx.name}: queries")
    done = ctx.draft.committed()
    queries = {key: f"{ctx.draft.uri}/parts/{done[f'queries-{key}']['directory']}" for key in blocks}
    spans = [part.tolist() for part in np.array_split(list(shards.values()), min(config.spans, len(shards)))]
    found = {key: [f"{ctx.draft.state}/found-{key}-{i:03d}.npz" for i in range(len(spans))] for key in blocks}
    # Span by span: an actor takes the partitions in their order, and opens a span once for all blocks.
    searches = {f"search-{key}-{i:03d}": {"queries": queries[key], "shards": span, "found": found[key][i]}
                for i, span in enumerate(spans) for key in blocks}  # fmt: skip
    computing(searches, SpanSearcher(config, statistics), name=f"{ctx.name}: search", actors=True)
    joins = {f"candidates-{key}": {"queries": queries[key], "found": found[key]} for key in blocks}
    run(joins, partial(_join, config), name=f"{ctx.name}: join")
    done = ctx.draft.committed()
    notes = [done[key]["tables"]["candidates"] for key in joins]
    given = len(ids), checksum([ids])
    taken = sum(n["rows"] for n in notes), add_checksums(n["id_sum"] for n in notes)
    if given != taken:
        raise RuntimeError(f"the groups read and written differ: {given} and {taken} (rows, sum of their ids)")
    passages = {"store_passages": statistics["passages"], "store_shards": len(shards)}
    lost = sum(number for key, part in done.items() if key.startswith("owners-") for number in part["facts"].values())
    with ctx.draft.attempt(SUMMARY) as attempt:
        attempt.count(facts={**passages, "repeated_passages": lost})


def _build_store(
    ctx: Context, config: MineConfig, slices: Sequence[Mapping[str, Any]], blocks: Sequence[Mapping[str, Any]],
    model: str,
) -> dict[str, str]:  # fmt: skip
    """Builds the shards; returns where each stands, by key."""
    run = partial(ctx.draft.map, num_cpus=config.execution.num_cpus)
    computing = partial(run, num_gpus=int(config.execution.use_gpu))
    rows = sum(_rows(item) for item in slices), sum(item["end"] - item["start"] for item in blocks)
    buckets = 1 + max(rows[0] // OWNER_ROWS, rows[1] // GROUP_ROWS)
    owners = {f"owners-{bucket:03d}": bucket for bucket in range(buckets)}
    run(owners, partial(find_owners, slices, blocks, buckets), name=f"{ctx.name}: owners")
    done = ctx.draft.committed()
    losers = [f"{ctx.draft.uri}/parts/{done[key]['directory']}/losers.npy" for key in owners]
    corpus = {f"{SHARD_PREFIX}{i:05d}": item for i, item in enumerate(slices)}
    computing(corpus, partial(build_corpus_shard, config, model, losers), name=f"{ctx.name}: encode passages")
    own = {f"{SHARD_PREFIX}own-{key[-3:]}": ctx.draft.part(key, "own") for key in owners}
    computing(own, partial(build_own_shard, config, model), name=f"{ctx.name}: encode own passages")
    done = ctx.draft.committed()
    shards = {key: f"{ctx.draft.uri}/parts/{done[key]['directory']}/{key}" for key in (*corpus, *own)
              if done[key]["facts"][key]["passages"]}  # fmt: skip
    if not shards:
        remedy = "Check the status column of the passages that mine.passages names"
        raise InputError(f"{ctx.name}: {config.passages}", "there is no passage to search", remedy)
    return shards


def _rows(item: Mapping[str, Any]) -> int:
    with open_parquet(item["file"]) as part:
        return sum(part.metadata.row_group(group).num_rows for group in range(item["start"], item["end"]))


def _statistics(ctx: Context, shards: Mapping[str, str]) -> dict[str, int]:
    done = ctx.draft.committed()
    return {name: sum(done[key]["facts"][key][name] for key in shards) for name in ("passages", "terms")}


def _encode_queries(
    config: MineConfig, model: str, shards: Sequence[str], statistics: Mapping[str, int], key: str,
    item: Mapping[str, Any], attempt: Attempt,
) -> None:  # fmt: skip
    torch.set_num_threads(config.execution.threads)
    groups = read_groups(item)
    attempt.write("block", [groups], BLOCK, "query_id")
    texts = groups["query"].to_pylist()
    save_queries(attempt.directory, texts, config, model, open_store(shards), statistics["passages"])


def _join(config: MineConfig, key: str, item: Mapping[str, Any], attempt: Attempt) -> None:
    groups = read_block(fetched(item["queries"]))
    spans, scores = zip(*(load_found(uri, config.miners) for uri in item["found"]), strict=True)
    hits = {miner: join_spans([span[miner] for span in spans], config.keep) for miner in config.miners}
    scores_G = np.fmax.reduce(scores)
    table = join_miners(groups, given_passages(groups), scores_G, hits)
    batches = (table.slice(start, ROWS_A_BATCH) for start in range(0, len(table), ROWS_A_BATCH))
    attempt.write("candidates", batches, CANDIDATES, "query_id")
    attempt.count(rows_in=len(groups), rows_out=len(table))


def rerank(ctx: Context, config: RerankConfig) -> None:
    """Scores the candidates; writes the same table with `rerank` set.

    Raises:
        InputError: There are no candidates, no store, or no such reranker.
        RuntimeError: A group was lost or taken twice.
    """
    shards = store_of(ctx, config.store)
    work = _parts(ctx, config.candidates)
    fn = partial(_rerank_part, config, ctx.resolve(config.model), shards)
    ctx.draft.map(work, fn, name=ctx.name, num_cpus=config.execution.num_cpus, num_gpus=int(config.execution.use_gpu))
    _check_parts(ctx, work, "candidates")


def _rerank_part(
    config: RerankConfig, model: str, shards: Sequence[str], key: str, file: str, attempt: Attempt
) -> None:
    torch.set_num_threads(config.execution.threads)
    execution = config.execution
    scorer = PairScorer(model, config.query_max_len, config.passage_max_len, execution.batch_tokens, config.dtype,
                        "cuda" if execution.use_gpu else "cpu")  # fmt: skip
    with open_parquet(file) as part:
        table = part.read()
    scored, pairs = rerank_table(table, open_store(shards), scorer, config.top_k, execution.chunk_pairs)
    batches = (scored.slice(start, ROWS_A_BATCH) for start in range(0, len(scored), ROWS_A_BATCH))
    attempt.write("candidates", batches, CANDIDATES, "query_id")
    attempt.count(rows_in=len(table), rows_out=len(scored), histograms=score_histograms(scored),
                  facts={key: {"pairs": pairs, "ids_read": checksum([table["query_id"].to_numpy()])}})  # fmt: skip


def select(ctx: Context, config: SelectConfig) -> None:
    """Chooses positives and negatives; writes the table `groups`, every group with its status.

    Raises:
        InputError: There are no candidates, no store, no scores or ranks of the kind that the config asks for, or no
            group is kept.
        RuntimeError: A group was lost or taken twice.
    """
    work = _parts(ctx, config.candidates)
    kept = mined_config(ctx, config.store).get("keep")
    for miner in sorted({*config.round_trip, config.rank_by} - {"best"}):
        if not holds_values(list(work.values()), f"candidates.list.element.{miner}_rank"):
            named = f"round_trip.{miner}" if miner in config.round_trip else "rank_by"
            remedy = f"Add {miner} to mine.miners, or name another miner"
            problem = f"no candidate of {config.candidates} has a rank by {miner}"
            raise InputError(f"{ctx.name}.{named}", problem, remedy)
        if kept is not None and config.round_trip.get(miner, 0) > kept:
            problem = f"{config.store} keeps the first {kept} candidates of a query, and all behind them would be lost"
            raise InputError(f"{ctx.name}.round_trip.{miner}", problem, "Lower it, or raise mine.keep")
    fn = partial(_select_part, config, store_of(ctx, config.store))
    ctx.draft.map(work, fn, name=ctx.name, num_cpus=config.execution.num_cpus)
    _check_parts(ctx, work, "groups")
    done = ctx.draft.committed()
    by_source: dict[str, dict[str, int]] = {}
    for key in work:
        for source, counts in done[key]["facts"][key]["by_source"].items():
            own = by_source.setdefault(source, {})
            for reason, number in counts.items():
                own[reason] = own.get(reason, 0) + number
    if not sum(done[key]["rows_out"] for key in work):
        drops = sum((Counter(done[key]["drops"]) for key in work), Counter())
        reasons = ", ".join(f"{number} {reason}" for reason, number in drops.most_common()) or "there are none"
        remedy = "Loosen the bounds that the reasons name; the report plots the scores"
        raise InputError(f"{ctx.name}: {config.candidates}", f"no group is kept: {reasons}", remedy)
    with ctx.draft.attempt(SUMMARY) as attempt:
        attempt.count(facts={"by_source": by_source})


def _select_part(config: SelectConfig, shards: Sequence[str], key: str, file: str, attempt: Attempt) -> None:
    with open_parquet(file) as part:
        table = part.read()
    groups, filled, passages = select_table(table, open_store(shards), config, file)
    attempt.write("groups", [groups], GROUPS, "query_id")
    attempt.write("filled", [filled], FILLED)
    counts = count_selected(groups, config.score)
    attempt.count(rows_in=len(table), rows_out=counts.kept, drops=counts.drops, histograms=counts.histograms)
    ids_read = checksum([table["query_id"].to_numpy()])
    attempt.count(facts={key: {"by_source": counts.by_source, "passages": passages, "ids_read": ids_read}})


def _parts(ctx: Context, ref: str) -> dict[str, str]:
    return {f"part-{i:05d}": file for i, file in enumerate(input_files(ctx, ref, "candidates"))}


def _check_parts(ctx: Context, work: Mapping[str, str], table: str) -> None:
    done = ctx.draft.committed()
    for key in work:
        note, manifest = done[key]["tables"][table], done[key]
        given = manifest["rows_in"], manifest["facts"][key]["ids_read"]
        if given != (note["rows"], note["id_sum"]):
            raise RuntimeError(f"{key}: it read {given} and wrote {note} (rows, sum of their ids)")

