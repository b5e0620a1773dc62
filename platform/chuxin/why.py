"""A training group's story, from the raw document to the batches that used it: what jobs/why.py prints.

Leaves out: finding rows (lineage.py), forgetting (forget.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from chuxin.artifacts import Artifact
from chuxin.errors import InputError
from chuxin.lineage import Row, inputs_of, rows_with, steps_of

SHOWN = 60
"""Characters of a text that are shown."""
PASSAGES_SHOWN = 3
"""Passages of a list that are shown; their number always is."""


def story(artifacts: Sequence[Artifact], query_id: int) -> Iterator[str]:
    """Yields the lines of a group's story, stage by stage.

    Args:
        artifacts: The recipe's committed ones, in order.
        query_id: Of the group.

    Raises:
        InputError: No artifact has such a group.
    """
    found = [(artifact, row) for artifact in artifacts for table in ("groups", "candidates")
             for row in rows_with(artifact, table, "query_id", [query_id])]
    if not found:
        remedy = "Take a query_id from a table `groups` or `plan` of this workspace"
        raise InputError(f"query {query_id}", "no committed artifact has this group", remedy)
    yield f"query {query_id} “{found[0][1].values['query']}”"
    origin = found[0][1].values["lineage"] or {}
    if origin.get("passage_id") is not None:
        yield from _pedigree(artifacts, origin["passage_id"], query_id)
    for _, row in found:
        yield from _group(row)
    for artifact in artifacts:
        rows = list(rows_with(artifact, "plan", "query_id", [query_id], ["epoch", "batch", "row", "passages"]))
        if rows:
            yield from _planned(artifact, rows, artifacts)


def _pedigree(artifacts: Sequence[Artifact], passage_id: int, query_id: int) -> Iterator[str]:
    """Where a query that an LLM wrote came from: raw document, passage, prompt, verdict."""
    for artifact in artifacts:
        for row in rows_with(artifact, "passages", "passage_id", [passage_id]):
            own = row.values
            for above in artifacts:
                for raw in rows_with(above, "documents", "document_id", [own["document_id"]]):
                    document = raw.values
                    yield (f"  {raw.stage:12} document {document['document_id']}: source {document['source']}, file "
                           f"{document['file']}, position {document['position']}, licence {document['license']}")
            yield (f"  {row.stage:12} passage {passage_id}, {own['offset']} characters into it, status "
                   f"{own['status']} (version {artifact.manifest['version']}): {_short(own['text'])}")
        for row in rows_with(artifact, "synthetic", "passage_id", [passage_id]):
            own = row.values
            yield (f"  {row.stage:12} written by {own['model']}, prompt {own['prompt_hash']}, seed {own['seed']}, "
                   f"{own['attempts']} attempt{'s' * (own['attempts'] != 1)}: {len(own['queries'])} queries")
        for row in rows_with(artifact, "judged", "passage_id", [passage_id]):
            for verdict in row.values["verdicts"]:
                if verdict["query_id"] == query_id:
                    score = "" if verdict["score"] is None else f", P(yes) {verdict['score']:.3f}"
                    yield (f"  {row.stage:12} {verdict['reason']}{score} by {row.values['model']}, "
                           f"criterion {verdict['criterion']}, prompt {verdict['prompt_hash']}")


def _group(row: Row) -> Iterator[str]:
    own = row.values
    origin = own["lineage"] or {}
    place = "" if origin.get("file") is None else f", file {origin['file']}, position {origin['position']}"
    if "candidates" in own:
        yield f"  {row.stage:12} {len(own['candidates'])} candidates: {_ranks(own['candidates'])}"
        return
    yield f"  {row.stage:12} source {own['source']}{place}, status {own['status']}"
    for name in ("positives", "negatives"):
        passages = own[name] or []
        for passage in passages[:PASSAGES_SHOWN]:
            score = "" if passage["score"] is None else f" score {passage['score']:.3f}"
            yield f"  {'':12}   {name[:-1]} {passage['passage_id']}{score}: {_short(passage['text'])}"
        if len(passages) > PASSAGES_SHOWN:
            yield f"  {'':12}   … {len(passages)} {name} in all"


def _ranks(candidates: Sequence[dict[str, Any]]) -> str:
    given = [c for c in candidates if c["given"]]
    scored = sum(c["rerank"] is not None for c in candidates)
    ranks = [f"{miner} rank {c[f'{miner}_rank']}" for c in given[:1] for miner in ("dense", "sparse", "bm25")
             if c[f"{miner}_rank"] is not None]
    own = f"its own passage at {', '.join(ranks)}" if ranks else "its own passage was not found"
    words = [c["relabel"] for c in candidates if c["relabel"] is not None]
    asked = f"; of {len(words)} that it is unsure of the LLM calls {words.count('yes')} right" if words else ""
    return f"{own}; {scored} scored by the reranker{asked}"


def _planned(plan: Artifact, rows: Sequence[Row], artifacts: Sequence[Artifact]) -> Iterator[str]:
    places = [f"epoch {r.values['epoch']} batch {r.values['batch']} row {r.values['row']}" for r in rows]
    yield f"  {plan.manifest['stage']:12} {', '.join(places)}"
    for training in artifacts:
        last = training.manifest["facts"].get("steps")
        if last is not None and plan.fingerprint in inputs_of(training):
            used = [step for step in steps_of(plan, rows) if step <= last]
            steps = f"step{'s' * (len(used) != 1)} {', '.join(map(str, used))}" if used else "not reached"
            yield f"  {training.manifest['stage']:12} {steps} of {last}"


def _short(text: str | None) -> str:
    line = " ".join((text or "").split())
    return f"“{line[:SHOWN]}…”" if len(line) > SHOWN else f"“{line}”"


