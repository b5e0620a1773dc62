"""The stages gate, synthesize, judge and relabel: row groups of their input are partitions, sent to one LLM pool.

A partition's task asks, parses and writes; the engines are actors that llm.py keeps. A killed run loses
no stored answer: its rerun reads them and computes only missing partitions. Leaves out: what is done with a row
(generate.py, judge.py, gate.py, relabel.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from chuxin.artifacts import Artifact, Attempt
from chuxin.config import ModelRef
from chuxin.errors import InputError
from chuxin.files import fetched, is_local
from chuxin.identity import Identities
from chuxin.ids import text_hash
from chuxin.report.bins import score_bins
from chuxin.runner import Context
from chuxin.schema import CANDIDATES, GROUPS, JUDGED, KEEP, SYNTHETIC
from chuxin.search.store import PassageStore, shard_uris
from chuxin.synthesis import gate as gates
from chuxin.synthesis.asking import Ask
from chuxin.synthesis.config import (
    GateConfig,
    JudgeConfig,
    LLMConfig,
    LLMExecution,
    RelabelConfig,
    SynthesizeConfig,
)
from chuxin.synthesis.cut import Cutter
from chuxin.synthesis.generate import Passage, Written, matches_length, write
from chuxin.synthesis.judge import accepted, decide, yes
from chuxin.synthesis.llm import LLMPool
from chuxin.synthesis.parse import holds_fence
from chuxin.synthesis.relabel import relabel as ask_about
from chuxin.synthesis.relabel import uncertain
from chuxin.synthesis.slices import Slice, chosen, columns, draws, limit_of, slices
from chuxin.synthesis.store import consolidate
from chuxin.synthesis.work import Crew

_SUMMARY = "summary"
"""The last partition in key order: its facts become the artifact's."""
_PASSAGE_COLUMNS = ("passage_id", "document_id", "source", "text", "text_hash", "status")
_SAMPLES = 12
_SILENT = 16
"""Pairs without a verdict, fenced ones among them, that are no accident if there is no pair with one."""


def gate(ctx: Context, config: GateConfig) -> None:
    """Asks an LLM about a sample of passages, fits the gate and scores all passages.

    Raises:
        InputError: There is no passage, the LLM cannot be had, or it gave no verdict on half of what it was asked.
    """
    parts = dict(slices(_artifact(ctx, config.passages).parts("passages")))
    work = {key: part._asdict() for key, part in parts.items()}
    limit = limit_of(_kept_ids(parts, {}), config.seed, config.labels)
    cutter = Cutter(ctx.resolve(config.llm.model), config.passage_max_tokens)
    with _crew(ctx, config.llm, config.execution) as crew:
        asked = {f"ask-{key}": part for key, part in work.items()}
        ctx.draft.map(asked, partial(_label, config, crew, cutter, limit), name=f"{ctx.name}: ask the LLM",
                      num_cpus=config.execution.num_cpus)  # fmt: skip
        model = crew.model
    # A partition, so that a rerun takes the gate that some passages have been scored by already.
    ctx.draft.map({"fit": [ctx.draft.part(key, "verdicts") for key in asked]}, partial(_fit, config),
                  name=f"{ctx.name}: fit", num_cpus=config.execution.num_cpus)  # fmt: skip
    fit = ctx.draft.committed()["fit"]
    fitted = gates.load(fetched(f"{ctx.draft.uri}/parts/{fit['directory']}/gate.npz"))
    ctx.draft.map({f"score-{key}": part for key, part in work.items()}, partial(_score, fitted, cutter),
                  name=f"{ctx.name}: score", num_cpus=config.execution.num_cpus)  # fmt: skip
    facts = {"model": model, "prompt_hash": config.package_files(), "gate": fit["facts"]["fit"]}
    _summary(ctx, config.execution, facts, [*asked])


def _fit(config: GateConfig, key: str, files: Sequence[str], attempt: Attempt) -> None:
    asked = pa.concat_tables(Slice(file).read() for file in files)
    labels = asked.filter(pc.is_valid(asked["score"]))
    if 2 * len(labels) <= len(asked):  # few verdicts, of short passages say, would speak for all
        raise InputError(key, f"the LLM gave a verdict on {len(labels)} of {len(asked)} passages",
                         "Check `passages`, `passage_max_tokens` and the LLM, remove the folder of this stage and run "
                         "again")
    fitted = gates.fit(labels["text"].to_pylist(), labels["score"].to_numpy(), config.seed, config.validation_share,
                       config.keep_recall)  # fmt: skip
    gates.save(fitted, attempt.path("gate.npz"))
    attempt.count(facts={key: fitted.facts})


def _label(
    config: GateConfig, crew: Crew, cutter: Cutter, limit: int, key: str, part: Mapping[str, Any], attempt: Attempt
) -> None:
    table = chosen(Slice(**part).read(_PASSAGE_COLUMNS), config.seed, limit)
    rows = [{**row, "text": cutter.cut(row["text"])} for row in table.to_pylist()]

    async def label(row: dict[str, Any], ask: Ask) -> dict[str, Any]:
        return {**row, "score": None if holds_fence(row["text"]) else
                (await yes("gate", ask, row["text"], row["text_hash"]))[0]}

    labels, counts = crew.run(rows, label, lambda row, error: {**row, "score": None})
    schema = pa.schema([("passage_id", pa.int64()), ("text", pa.string()), ("score", pa.float32())])
    attempt.write("verdicts", [columns(labels, schema)], schema)
    attempt.count(facts={key: dict(counts)})


def _score(
    fitted: gates.Gate, cutter: Cutter, key: str, part: Mapping[str, Any], attempt: Attempt
) -> None:
    table = Slice(**part).read(("passage_id", "text", "status"))
    scores = gates.score(fitted, [cutter.cut(text) for text in table["text"].to_pylist()])
    status = gates.statuses(fitted, scores, table["status"].to_pylist())
    rows = pa.table({"passage_id": table["passage_id"], "score": scores, "status": status})
    attempt.write("gate", [rows], gates.GATE, "passage_id")
    fallen = Counter(s for s in status if s != KEEP)
    histograms = {"probability_gate": score_bins("probability", np.asarray(scores))}
    attempt.count(len(table), len(table) - fallen.total(), fallen, histograms)


def synthesize(ctx: Context, config: SynthesizeConfig) -> None:
    """Asks an LLM for queries of the chosen passages.

    Raises:
        InputError: No passage is left to ask about, none gave a query, the LLM cannot be had, or the budget is spent.
    """
    parts = dict(slices(_artifact(ctx, config.passages).parts("passages")))
    gated = _gate_parts(ctx, config, parts)
    limit = limit_of(_kept_ids(parts, gated), config.seed, config.max_passages)
    work = {key: {**part._asdict(), "gate": gated.get(key, "")} for key, part in parts.items()}
    cutter = Cutter(ctx.resolve(config.llm.model), config.passage_max_tokens)
    with _crew(ctx, config.llm, config.execution) as crew:
        ctx.draft.map(work, partial(_write, config, crew, cutter, limit), name=ctx.name,
                      num_cpus=config.execution.num_cpus)  # fmt: skip
        model = crew.model
    done = {key: manifest for key, manifest in ctx.draft.committed().items() if key in work}
    asked, kept = sum(m["rows_in"] for m in done.values()), sum(m["rows_out"] for m in done.values())
    if not asked:
        raise InputError(ctx.name, "no passage is left to ask about", "Lower the filters of curate or of the gate")
    if not kept:
        raise InputError(ctx.name, f"none of {asked} passages gave a query ({_most(done)})",
                         "Read `rejected` and `error` of the table `synthetic` in its parts and check the LLM; after "
                         "mending an endpoint's give llm.revision another value, for what it answered is stored")
    facts = {"model": model, "prompt_hash": config.package_files(), "samples": _samples(ctx, done)}
    _summary(ctx, config.execution, facts, list(work))
    ctx.log(f"queries for {kept:,} of {asked:,} passages")


def _write(
    config: SynthesizeConfig, crew: Crew, cutter: Cutter, limit: int, key: str, item: Mapping[str, Any],
    attempt: Attempt,
) -> None:
    held = Slice(item["gate"]).read() if item["gate"] else None
    table = chosen(Slice(item["file"], item["group"]).read(_PASSAGE_COLUMNS), config.seed, limit, held)
    passages = []
    for row in table.to_pylist():
        text = cutter.cut(row["text"])
        hashed = row["text_hash"] if text == row["text"] else text_hash(text)
        passages.append(Passage(row["passage_id"], row["document_id"], row["source"], text, hashed, row["text_hash"]))

    async def work(passage: Passage, ask: Ask) -> Written:
        return await write(passage, ask, config)

    written, counts = crew.run(passages, work, lambda _, error: Written(status="llm_error", error=str(error)))
    prompts = config.package_files()
    rows = [{**passage._asdict(), **vars(row), "model": crew.model, "prompt_hash": prompts}
            for passage, row in zip(passages, written, strict=True)]  # fmt: skip
    attempt.write("synthetic", [columns(rows, SYNTHETIC)], SYNTHETIC, "passage_id")
    drops = Counter(row.status for row in written if row.status != KEEP)
    attempt.count(len(rows), len(rows) - drops.total(), drops, facts={key: {**counts, **_kinds(written)}})


def _kinds(written: Sequence[Written]) -> dict[str, int]:
    """Counts of queries, by status, kind and whether they are as long as was asked."""
    queries = [q for row in written for q in row.queries]
    kept = [q for q in queries if q["status"] == KEEP]
    counts = Counter({"queries": len(queries), "queries_kept": len(kept)})
    counts.update(f"status_{q['status']}" for q in queries if q["status"] != KEEP)
    counts.update(f"kind_{q['kind']}" for q in kept)
    asked = [q for q in kept if q["length"]]
    counts.update({"length_asked": len(asked),
                   "length_matched": sum(matches_length(q["query"], q["length"]) for q in asked)})
    counts.update({"prompt_tokens": sum(r.prompt_tokens for r in written),
                   "output_tokens": sum(r.output_tokens for r in written),
                   "attempts": sum(r.attempts for r in written)})
    return dict(counts)


def judge(ctx: Context, config: JudgeConfig) -> None:
    """Judges written queries by rules and by an LLM; the accepted become groups.

    Raises:
        InputError: No query is left, the LLM cannot be had, or the budget is spent.
    """
    work = {key: part._asdict() for key, part in slices(_artifact(ctx, config.queries).parts("synthetic"))}
    with _crew(ctx, config.llm, config.execution) as crew:
        ctx.draft.map(work, partial(_judge, config, crew), name=ctx.name, num_cpus=config.execution.num_cpus)
        model = crew.model
    done = {key: manifest for key, manifest in ctx.draft.committed().items() if key in work}
    judged, groups = sum(m["rows_in"] for m in done.values()), sum(m["rows_out"] for m in done.values())
    if not groups:
        raise InputError(ctx.name, f"none of {judged} queries is left ({_most(done)})",
                         "Look at the table `judged` and loosen `rules`, `criteria` or `threshold`; after many an "
                         f"llm_error check the LLM, remove {ctx.draft.uri} and run again")
    _summary(ctx, config.execution, {"model": model, "prompt_hash": config.package_files()}, list(work))
    ctx.log(f"{groups:,} of {judged:,} queries accepted")


def _judge(config: JudgeConfig, crew: Crew, key: str, item: Mapping[str, Any], attempt: Attempt) -> None:
    rows = Slice(**item).read().to_pylist()

    async def work(row: dict[str, Any], ask: Ask) -> tuple[list[dict[str, Any]], str]:
        return await decide(row, ask, config), row["status"]

    judged, counts = crew.run(rows, work, lambda _, error: ([], f"llm_error: {error}"[:200]))
    table, groups = [], []
    queries, drops = 0, Counter[str]()
    scores: dict[str, list[float]] = {criterion: [] for criterion in config.criteria}
    for row, (verdicts, status) in zip(rows, judged, strict=True):
        made = accepted(row, verdicts)
        groups += made
        table.append({"passage_id": row["passage_id"], "source": row["source"], "model": crew.model,
                      "verdicts": verdicts, "status": status if made or status != KEEP else "no_query"})  # fmt: skip
        first = {}  # a query falls by the first reason it has
        for v in verdicts:
            if first.get(v["query_id"], KEEP) == KEEP:
                first[v["query_id"]] = v["reason"]
        queries += len(first)
        drops.update(reason for reason in first.values() if reason != KEEP)
        repeated = sum(reason == KEEP for reason in first.values()) - len(made)
        drops.update({"repeated": repeated} if repeated else {})
        for v in verdicts:
            if v["score"] is not None:
                scores[v["criterion"]].append(v["score"])
    attempt.write("judged", [columns(table, JUDGED)], JUDGED, "passage_id")
    attempt.write("groups", [columns(groups, GROUPS)], GROUPS, "query_id")
    histograms = {f"probability_{criterion}": score_bins("probability", np.array(values))
                  for criterion, values in scores.items()}  # fmt: skip
    attempt.count(queries, len(groups), drops, histograms, {key: dict(counts)})


def relabel(ctx: Context, config: RelabelConfig) -> None:
    """Asks an LLM about the candidates that the reranker is unsure of.

    Raises:
        InputError: No candidate has a reranker score, the passage store is missing or lacks a passage, the LLM cannot
            be had or gives no verdict at all, or the budget is spent.
    """
    work = {key: part._asdict() for key, part in slices(_artifact(ctx, config.candidates).parts("candidates"))}
    shards = shard_uris(_artifact(ctx, config.store))
    if not shards:
        raise InputError(f"{ctx.name}: {config.store}", "it holds no passage store", "Name the mine stage as `store`")
    cutter = Cutter(ctx.resolve(config.llm.model), config.passage_max_tokens)
    with _crew(ctx, config.llm, config.execution) as crew:
        ctx.draft.map(work, partial(_relabel, config, crew, cutter, shards), name=ctx.name,
                      num_cpus=config.execution.num_cpus)  # fmt: skip
        model = crew.model
    done = ctx.draft.committed()
    counts = sum((Counter(done[key]["facts"].get(key, {})) for key in work), Counter[str]())
    if counts["candidates"] and not counts["candidates_scored"]:
        raise InputError(f"{ctx.name}: {config.candidates}", "no candidate has a score of a reranker",
                         "Name the rerank stage in `candidates`")
    said = {f"relabelled_{word}": counts[f"relabel_{word}"] for word in ("yes", "no", "refused")}
    if said["relabelled_refused"] == sum(said.values()) >= _SILENT:
        remedy = f"Check that it answers 是 or 否, remove {ctx.draft.uri} and run again; or leave relabel out"
        raise InputError(ctx.name, f"the LLM gave no verdict on any of {said['relabelled_refused']} pairs", remedy)
    _summary(ctx, config.execution, {"model": model, "prompt_hash": config.package_files(), **said}, list(work))
    ctx.log(f"{sum(said.values()):,} pairs asked about, {said['relabelled_yes']:,} answered with yes")


def _relabel(
    config: RelabelConfig, crew: Crew, cutter: Cutter, shards: Sequence[str], key: str, item: Mapping[str, Any],
    attempt: Attempt,
) -> None:
    rows = Slice(**item).read().to_pylist()
    places = [uncertain(row["candidates"], config) for row in rows]
    wanted = {row["candidates"][p]["text_hash"] for row, found in zip(rows, places, strict=True) for p in found}
    own = (p for row in rows for p in (*row["positives"], *row["negatives"]))  # these need not stand in the corpus
    texts = {p["text_hash"]: cutter.cut(p["text"]) for p in own if p["text_hash"] in wanted}
    mined = sorted(wanted - texts.keys())
    held = PassageStore([fetched(shard) for shard in shards]).texts(np.array(mined, np.int64))
    texts |= dict(zip(mined, map(cutter.cut, held), strict=True))

    async def work(pair: tuple[dict[str, Any], list[int]], ask: Ask) -> list[str | None]:
        return await ask_about(*pair, texts, ask, config)

    pairs = list(zip(rows, places, strict=True))
    labels, counts = crew.run(pairs, work, lambda pair, error: [None] * len(pair[1]))
    said = Counter[str]()
    for (row, found), given in zip(pairs, labels, strict=True):
        for place, label in zip(found, given, strict=True):
            row["candidates"][place]["relabel"] = label
            said[f"relabel_{label or 'refused'}"] += 1
        said["candidates"] += len(row["candidates"])
        said["candidates_scored"] += sum(c["rerank"] is not None for c in row["candidates"])
    attempt.write("candidates", [columns(rows, CANDIDATES)], CANDIDATES, "query_id")
    attempt.count(len(rows), len(rows), facts={key: {**counts, **said}})


@contextlib.contextmanager
def _crew(ctx: Context, llm: LLMConfig, execution: LLMExecution) -> Iterator[Crew]:
    """The LLM of a stage, with the identity that its answers are stored under."""
    workspace = os.path.dirname(ctx.draft.uri)
    answers = execution.answers_in(workspace)
    if not is_local(answers):
        raise InputError(f"{ctx.name}.execution.answers", f"the answer store must be a local directory, not {answers}",
                         "Give execution.answers a directory that all nodes reach")
    if execution.answers and not os.path.isabs(answers):
        # Workers do not stand where the driver does: each would keep answers in a place of its own.
        raise InputError(f"{ctx.name}.execution.answers", f"the answer store's path {answers} is relative",
                         "Give it from / or ~ on")
    path = ctx.resolve(llm.model)
    model = _identity(workspace, llm.model, path, llm)
    following = ctx.following
    consolidate(answers)
    shared = getattr(following, "llm", None) == llm and \
        following.execution.engine_options() == execution.engine_options()
    with LLMPool(path, llm, execution, keep=shared, content=model, recipe=workspace) as pool:
        yield Crew(pool.client, pool.ledger, model, os.path.abspath(answers), execution)


def _identity(workspace: str, ref: ModelRef, path: str, llm: LLMConfig) -> str:
    """A name to read, and a hash of what decides the answers: the checkpoint's content, or the endpoint's URL."""
    if llm.endpoint is not None:
        # Hashed, not shown: a URL may hold a password, and this name stands in every row.
        return f"endpoint:{llm.served_name}@{_digest(llm.served_name, llm.endpoint.rstrip('/'), llm.revision)}"
    known = Identities(workspace)
    content = known.identify(path, True, "llm", []).name
    known.remember()
    digest = _digest(content, llm.quantization, llm.dtype)
    return f"{ref.rstrip('/').rpartition('/')[2].rpartition(':')[2]}@{digest}"


def _digest(*fields: str | None) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(fields).encode())[:12]


def _artifact(ctx: Context, ref: str) -> Artifact:
    return ctx.inputs.get(ref) or Artifact(ctx.resolve(ref))


def _gate_parts(ctx: Context, config: SynthesizeConfig, parts: Mapping[str, Slice]) -> dict[str, str]:
    """The gate's rows of each slice of passages, by key; empty without a gate."""
    if config.gate is None:
        return {}
    artifact = _artifact(ctx, config.gate)
    by_key = {p["key"]: p for p in artifact.partitions()}
    missing = next((key for key in parts if f"score-{key}" not in by_key), None)
    if missing is not None:
        raise InputError(artifact.uri, f"the gate has no scores of passages {missing}",
                         "Give the gate and synthesize the same `passages`")
    folder = f"{artifact.uri}/parts"
    return {key: f"{folder}/{by_key[f'score-{key}']['directory']}/gate.parquet" for key in parts}


def _kept_ids(parts: Mapping[str, Slice], gated: Mapping[str, str]) -> Iterator[np.ndarray]:
    for key, part in parts.items():
        table = part.read(("passage_id", "status"))
        held = Slice(gated[key]).read() if gated else None
        yield chosen(table, 0, (1 << 64) - 1, held)["passage_id"].to_numpy()


def _summary(ctx: Context, execution: LLMExecution, facts: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Adds the partitions' counts up into the artifact's facts."""
    done, total = ctx.draft.committed(), Counter[str]()
    for key in keys:
        total.update(done[key]["facts"].get(key, {}))
    with ctx.draft.attempt(_SUMMARY) as attempt:
        attempt.count(facts={**facts, "engines": execution.engines, "hour_price": execution.hour_price,
                             "llm": dict(total)})  # fmt: skip


def _samples(ctx: Context, done: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A few rows for the report, chosen by their ids: passages with their queries."""
    rows: list[dict[str, Any]] = []
    for key in done:
        for _, part in slices([ctx.draft.part(key, "synthetic")]):
            table = part.read(("passage_id", "source", "text", "queries", "status"))
            rows += table.filter(pc.equal(table["status"], KEEP)).to_pylist()
        order = draws(np.array([r["passage_id"] for r in rows], np.int64), 0).argsort()[:_SAMPLES]
        rows = [rows[i] for i in order]
    return [{"passage_id": str(r["passage_id"]), "source": r["source"], "text": r["text"],
             "queries": [{k: q[k] for k in ("query", "kind", "difficulty", "length", "status")} for q in r["queries"]]}
            for r in rows]  # fmt: skip


def _most(done: Mapping[str, Any]) -> str:
    drops = sum((Counter(m["drops"]) for m in done.values()), Counter[str]())
    return ", ".join(f"{number} × {reason}" for reason, number in drops.most_common(3)) or "there were none"
