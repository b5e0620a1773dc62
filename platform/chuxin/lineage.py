"""Finds rows in a workspace's committed artifacts: a group's story, and all that derives from a passage.

A scan reads the id column of each row group and then only the row groups that hold a hit, so a story of 10^8 rows
takes minutes and a constant memory. Leaves out: what is printed (why.py) and what is removed (forget.py).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chuxin.artifacts import Artifact, open_artifact
from chuxin.errors import InputError
from chuxin.files import filesystem, is_local, open_parquet, read_json

HELD = ("positives", "negatives")
"""The columns of groups and candidates that hold passages."""


class Row(NamedTuple):
    """A row that was found."""

    stage: str
    part: str
    """Key of the partition it stands in."""
    values: dict[str, Any]


def holds(artifact: Artifact, table: str) -> bool:
    """True if an artifact has a table of that name."""
    return any(table in part["tables"] for part in artifact.partitions())


def rows_with(
    artifact: Artifact, table: str, column: str, wanted: Collection[int], columns: Sequence[str] | None = None
) -> Iterator[Row]:
    """Yields the rows of a table whose int64 column, or a leaf of a list of structs in it, is among `wanted`.

    Args:
        artifact: Committed.
        table: One of its tables; nothing is found where it has none of that name.
        column: A column, or a path such as "positives.list.element.text_hash": any element counts.
        wanted: Values.
        columns: Those of the row that are read; all by default.
    """
    if not wanted or not holds(artifact, table):
        return
    values = np.array(sorted(wanted), np.int64)
    for part in artifact.partitions():
        if table not in part["tables"]:
            continue
        file = open_parquet(f"{artifact.uri}/parts/{part['directory']}/{part['tables'][table]['file']}")
        if column.partition(".")[0] not in file.schema_arrow.names:
            return
        for group in range(file.num_row_groups):
            hit = _hits(file.read_row_group(group, columns=[column]).column(0).combine_chunks(), values)
            if len(hit):
                found = file.read_row_group(group, columns=columns).take(pa.array(hit))
                yield from (Row(artifact.manifest["stage"], part["key"], row) for row in found.to_pylist())


def _hits(column: pa.Array, values: np.ndarray) -> np.ndarray:
    """Indices of the rows of which a value, at any depth, is among `values`."""
    owner = None
    while isinstance(column, (pa.ListArray, pa.StructArray)):
        if isinstance(column, pa.StructArray):
            column = column.flatten()[0]  # only the leaf that was asked for is read
            continue
        parents = pc.list_parent_indices(column).to_numpy()
        owner = parents if owner is None else owner[parents]
        column = pc.list_flatten(column)
    found = np.flatnonzero(np.isin(column.fill_null(-1).to_numpy(zero_copy_only=False), values))
    return found if owner is None else np.unique(owner[found])


def steps_of(plan: Artifact, rows: Sequence[Row]) -> list[int]:
    """Returns the steps, from 1, at which a training comes to rows of a plan.

    A plan's files follow each other in the order of their keys, and a row's batch counts within its file.
    """
    before, start = {}, 0
    for part in plan.partitions():
        before[part["key"]] = start
        start += part["facts"].get("batches", 0)
    return sorted({before[row.part] + row.values["batch"] + 1 for row in rows})


def directories(workspace: str) -> list[str]:
    """Returns the URIs of a workspace's directories, whatever they hold; none where there is no workspace."""
    fs, path = filesystem(workspace)
    fs.invalidate_cache()  # object stores' clients remember listings
    if not fs.exists(path):
        return []
    names = (entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "directory")
    return sorted(f"{workspace.rstrip('/')}/{name.rstrip('/').rpartition('/')[2]}" for name in names)


def unfinished(workspace: str) -> list[str]:
    """Returns the directories of stages that were begun and not committed: nobody can tell what their files hold."""
    return [uri for uri in directories(workspace)
            if read_json(f"{uri}/manifest.json") is None and filesystem(uri)[0].exists(f"{filesystem(uri)[1]}/parts")]


def inputs_of(artifact: Artifact) -> set[str]:
    """Returns the fingerprints of what an artifact was made from."""
    return {given["fingerprint"] for given in artifact.manifest["inputs"].values()}


class Ancestry(NamedTuple):
    """Artifacts and all that they were made from."""

    artifacts: list[Artifact]
    """Inputs before what is made of them; those of other workspaces too."""
    gone: dict[str, str]
    """What cannot be read any more: fingerprint → URI."""


def ancestry(made: Sequence[Artifact]) -> Ancestry:
    """Follows manifests' inputs from artifacts to the first ones.

    An input is what has the recorded fingerprint and stands beside its consumer (a workspace may have been moved, or
    copied) or else where it stood. The place tells two apart, not the fingerprint: a copy of a model, made by another
    workspace, has the fingerprint of what it was copied from.

    Args:
        made: They keep their URIs as given here, however inputs spell them.
    """
    at: dict[str, Artifact | None] = {_place(artifact.uri): artifact for artifact in made}
    found: dict[str, Artifact] = {}
    gone: dict[str, str] = {}

    def source(given: Mapping[str, str], consumer: Artifact) -> Artifact | None:
        beside = f"{consumer.uri.rpartition('/')[0]}/{given['uri'].rpartition('/')[2]}"
        for uri in (beside, given["uri"]):
            place = _place(uri)
            if place not in at:
                at[place] = open_artifact(uri)
            known = at[place]
            if known is not None and known is not consumer and known.fingerprint == given["fingerprint"]:
                return known
        return None

    waiting = list(reversed(made))
    begun: set[str] = set()
    while waiting:  # depth first; rounds may make longer chains than recursion goes deep
        artifact = waiting[-1]
        if artifact.uri in begun:
            waiting.pop()
            if artifact.uri not in found:
                found[artifact.uri] = artifact
            continue
        begun.add(artifact.uri)
        for given in reversed(artifact.manifest["inputs"].values()):
            known = source(given, artifact)
            if known is None:
                gone[given["fingerprint"]] = given["uri"]
            elif known.uri not in begun:
                waiting.append(known)
    return Ancestry(list(found.values()), gone)


def _place(uri: str) -> str:
    """One name of a place, whatever links, protocols and relative parts lead there."""
    try:
        fs, path = filesystem(uri)
    except (InputError, OSError, ValueError):  # its protocol is not known or does not connect: nothing is read there
        return uri
    return os.path.realpath(path) if is_local(uri) else fs.unstrip_protocol(path)


def every_artifact(workspace: str) -> Ancestry:
    """Returns all committed artifacts of a workspace, those of other configs and of earlier data too, and what others
    they were made from.
    """
    return ancestry([artifact for uri in directories(workspace) if (artifact := open_artifact(uri)) is not None])
