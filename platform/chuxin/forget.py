"""What derives from a passage, and removing it: what jobs/forget.py prints and does.

A passage is its text: every row that holds it, by the text's hash, counts, and every query that was written from it.
Removal is by rebuilding: the hash goes into the file that curate's `forgotten` names, stored LLM answers go, and the
artifacts that hold a trace are deleted, so that the next run of the recipe makes them anew without it. All artifacts
of the workspace are searched: the file's content is part of curate's fingerprint, so after a removal, whole or killed,
the recipe no longer knows those of before. Those of other workspaces that these were made from are searched too and
named; they are removed there, and later, because from there nothing leads here. Leaves out: the raw files and ingest's
copy of them, which are the user's to change; they are named. Unfinished stages too, which have no manifest to tell what
they hold; they are named. And the copies of an object store's artifacts in the nodes' temporary directories
(files.fetched).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

from chuxin.artifacts import Artifact
from chuxin.corpus.passages import FORGOTTEN
from chuxin.corpus.pipeline import read_forgotten
from chuxin.errors import InputError
from chuxin.files import filesystem, read_json, write_bytes, write_json
from chuxin.lineage import holds, inputs_of, rows_with
from chuxin.synthesis.store import remove as remove_answers

LISTS = {"groups": ("positives", "negatives"), "candidates": ("candidates", "positives", "negatives"),
         "plan": ("passages",)}  # fmt: skip
"""The lists of passages in each table: one stands there by its id, and by its text's hash, which differs from the
passage's where a text was cut for an LLM."""
REMOVED = "removed.json"
"""Stands in an artifact from before its manifest goes until all else is gone."""


class Trace(NamedTuple):
    """What one artifact holds of a passage."""

    artifact: Artifact
    rows: int
    """Rows that hold the text or a query written from it; 0 where it only descends from one that does."""
    what: str


class Found(NamedTuple):
    """All that derives from a passage."""

    hashes: set[int]
    """Its text's, several where artifacts hold it differently cleaned."""
    raw: list[str]
    """Where the raw text stands."""
    made: list[Trace]
    """Every artifact of the workspace that is to be made anew, inputs first."""
    elsewhere: list[Trace]
    """Those of other workspaces that lead here."""
    shown: set[int]
    """Hashes of its text, whole and as it was cut for an LLM: what stored answers are about."""


def traces(artifacts: Sequence[Artifact], passage_id: int, inside: Collection[str]) -> Found:
    """Finds all that derives from a passage.

    Args:
        artifacts: Committed ones, inputs before what is made of them.
        passage_id: Of a table `passages`, or of a passage in a table `groups`.
        inside: URIs of the workspace's directories. Others are searched by the text alone: what has this id there may
            be another passage, since ids are those of a source, a file and a position.

    Raises:
        InputError: No artifact has this passage.
    """
    own = [artifact for artifact in artifacts if artifact.uri in inside]
    # Groups may hold a text cut for an LLM: what `passages` say, here or elsewhere, goes first.
    hashes = _in_passages(own, passage_id) or _in_passages(artifacts, passage_id) | _in_groups(own, passage_id)
    hashes = hashes or _in_groups(artifacts, passage_id)
    if not hashes:
        remedy = ("Take a passage_id from curate's table `passages` or from `groups`; if an earlier removal took "
                  "curate's artifact, run the recipe up to curate first")  # fmt: skip
        raise InputError(f"passage {passage_id}", "no committed artifact has this passage", remedy)
    columns = ["passage_id", "document_id"]
    same = [row.values for artifact in own for row in rows_with(artifact, "passages", "text_hash", hashes, columns)]
    raw = [f"{row.stage}: source {row.values['source']}, file {row.values['file']}, position {row.values['position']}"
           for artifact in own
           for row in rows_with(artifact, "documents", "document_id", {held["document_id"] for held in same})]
    raw += [f"{row.stage}: source {row.values['source']}, file {row.values['lineage']['file']}, position "
            f"{row.values['lineage']['position']} (a labelled group)"
            for artifact in own if holds(artifact, "documents") for column in LISTS["groups"]
            for row in rows_with(artifact, "groups", f"{column}.list.element.text_hash", hashes)]
    passages = {passage_id} | {held["passage_id"] for held in same}
    queries = {verdict["query_id"] for artifact in own
               for row in rows_with(artifact, "judged", "passage_id", passages)
               for verdict in row.values["verdicts"]}
    made: list[Trace] = []
    for artifact in artifacts:
        traced = {trace.artifact.fingerprint for trace in made}
        if holds(artifact, "documents") and not inputs_of(artifact) & traced:
            continue
        ids = (passages, queries) if artifact.uri in inside else (set(), set())
        counts = {table: number for table in ("passages", "synthetic", *LISTS, "judged")
                  if (number := _count(artifact, table, hashes, *ids))}
        if counts or inputs_of(artifact) & traced:
            what = ", ".join(f"{number} in {table}" for table, number in counts.items())
            made.append(Trace(artifact, sum(counts.values()), what or "made from these"))
    cut = {row.values["text_hash"] for artifact in own
           for row in rows_with(artifact, "synthetic", "passage_id", passages, ["text_hash"])}
    return Found(hashes, list(dict.fromkeys(raw)), [trace for trace in made if trace.artifact.uri in inside],
                 [trace for trace in made if trace.artifact.uri not in inside], hashes | cut)


def _in_passages(artifacts: Sequence[Artifact], passage_id: int) -> set[int]:
    """The hashes of a passage's text."""
    return {row.values["text_hash"] for artifact in artifacts
            for row in rows_with(artifact, "passages", "passage_id", [passage_id], ["text_hash"])}


def _in_groups(artifacts: Sequence[Artifact], passage_id: int) -> set[int]:
    """The hashes of its text as groups hold it."""
    return {passage["text_hash"] for artifact in artifacts for column in LISTS["groups"]
            for row in rows_with(artifact, "groups", f"{column}.list.element.passage_id", [passage_id], [column])
            for passage in row.values[column] if passage["passage_id"] == passage_id}


def _count(artifact: Artifact, table: str, hashes: set[int], passages: set[int], queries: set[int]) -> int:
    keys = [("text_hash", hashes), ("passage_id", passages), ("query_id", queries)]
    for column in LISTS.get(table, ()):
        keys += [(f"{column}.list.element.text_hash", hashes), (f"{column}.list.element.passage_id", passages)]
    found = set()
    for column, wanted in keys:
        for row in rows_with(artifact, table, column, wanted):
            own = row.values
            if table == "passages" and own["status"] == FORGOTTEN:
                continue  # a row without its text
            found.add((row.part, *(own.get(name) for name in ("epoch", "batch", "row", "query_id", "passage_id"))))
    return len(found)


def comes_back(found: Found, gone: Collection[str]) -> bool:
    """True if the workspace itself would make the passage again, were it not told to forget it.

    Args:
        found: What `traces` found.
        gone: What artifacts of the workspace were made from and cannot be read any more.
    """
    curated = any(trace.artifact.manifest["stage"] == "curate" for trace in found.made)
    return curated or bool(found.raw) or not (found.elsewhere or gone)


def remove(found: Found, passage_id: int, forgotten: str | None, answers: Collection[str], pages: Sequence[str]) -> int:
    """Writes the passage into the file of forgotten ones, then deletes answers, pages and artifacts that hold a trace.

    In this order, so that a kill in between leaves a passage that the next rebuild forgets. Artifacts go last made
    first: none is left whose inputs are gone. No stage may be at work meanwhile.

    Args:
        found: What `traces` found.
        passage_id: Of the passage.
        forgotten: The file that curate's config names; None of a config without curate.
        answers: Directories of stored LLM answers.
        pages: Files that show samples of the artifacts, such as the report.

    Returns:
        The number of stored answers that were removed.

    Raises:
        InputError: The file holds something else.
    """
    if forgotten is not None:
        _add_forgotten(os.path.expanduser(forgotten), passage_id, found.hashes)
    removed = sum(remove_answers(directory, lambda value: value[-1] in found.shown) for directory in answers)
    for page in pages:
        fs, place = filesystem(page)
        if fs.exists(place):
            fs.rm(place)
    for trace in reversed(found.made):
        _delete(trace.artifact.uri)
    return removed


def _add_forgotten(path: str, passage_id: int, hashes: set[int]) -> None:
    """Adds lines to the file of forgotten passages; one that curate would refuse stays as it is."""
    fs, place = filesystem(path)
    lines: list[str] = []
    if fs.exists(place):
        read_forgotten(path)
        lines = fs.cat_file(place).decode().splitlines()
    lines += [line for line in (f"{passage_id} {text_hash}" for text_hash in sorted(hashes)) if line not in lines]
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def finish_removals(uris: Sequence[str]) -> list[str]:
    """Deletes what a killed removal left half deleted among directories; returns those."""
    left = [uri for uri in uris if read_json(f"{uri}/{REMOVED}") is not None]
    for uri in left:
        _delete(uri)
    return left


def _delete(uri: str) -> None:
    """Deletes an artifact: its manifest first, so that nobody reads what is left, the note that it goes last."""
    write_json(f"{uri}/{REMOVED}", {})
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    inside = [name.rstrip("/") for name in fs.ls(path, detail=False)]
    order = {"manifest.json": 0, REMOVED: 2}
    for name in sorted(inside, key=lambda name: order.get(name.rpartition("/")[2], 1)):
        fs.rm(name, recursive=True)
    if fs.exists(path):  # object stores have no empty directories
        fs.rmdir(path)
