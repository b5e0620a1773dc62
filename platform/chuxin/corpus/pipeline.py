"""Ingest and curate on the cluster: which partitions there are, and that every row came through exactly once.

The rows are computed in ingestion.py, passages.py and groups.py, one function a kind of partition, through
`Draft.map`: each partition is committed by itself, so a killed job computes only what is missing.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from chuxin import benchmark_folder, records
from chuxin.artifacts import Artifact, Attempt, add_checksums
from chuxin.corpus.config import CurateConfig, IngestConfig
from chuxin.corpus.decontaminate import BENCHMARK_TEXTS, benchmark_texts
from chuxin.corpus.groups import map_groups, reduce_groups
from chuxin.corpus.ingestion import ingest_part, malformed_error
from chuxin.corpus.normalize import normalize
from chuxin.corpus.passages import bucket_table, map_documents, reduce_passages
from chuxin.errors import InputError
from chuxin.files import filesystem, open_parquet

if TYPE_CHECKING:
    from chuxin.runner import Context

_CONTAINERS: dict[str, records.Container] = {"wudao": "array", "parquet": "parquet"}
# The last partition in key order: its facts become the artifact's.
_SUMMARY = "summary"

Manifests = Mapping[str, Mapping[str, Any]]


def ingest(ctx: Context, config: IngestConfig) -> None:
    """Reads raw files into the tables `documents`, `groups` and `rejects`.

    Raises:
        InputError: A path is missing, a file is broken, or more rows are malformed than the config allows.
    """
    work = {}
    for kind, sources in (("documents", config.documents), ("groups", config.pairs)):
        for source in sources:
            container = _CONTAINERS.get(source.format, "lines")
            parts = records.cut(ctx.resolve(source.path), container, config.partition_bytes)
            for index, part in enumerate(parts):
                work[f"{kind}-{source.name}-{index:06d}"] = {"source": source.name, **part._asdict()}
    sources_by_name = {s.name: s for s in (*config.documents, *config.pairs)}
    fn = partial(ingest_part, config.execution.max_malformed_share, sources_by_name)
    ctx.draft.map(work, fn, name=ctx.name, num_cpus=config.execution.num_cpus)
    done = ctx.draft.committed()
    manifests = {key: done[key] for key in work}
    _check_malformed(manifests, config.execution.max_malformed_share)
    by_source: dict[str, Counter[str]] = {}
    for key, manifest in manifests.items():
        counts = {"rows_in": manifest["rows_in"], "rows_out": manifest["rows_out"], **manifest["drops"]}
        by_source.setdefault(work[key]["source"], Counter()).update(counts)
    with ctx.draft.attempt(_SUMMARY) as attempt:
        counts = {name: dict(number) for name, number in by_source.items()}
        attempt.count(facts={"by_source": counts, "first_reject": _first_reject(manifests)})


def _check_malformed(manifests: Manifests, allowed: float) -> None:
    rows = sum(m["rows_in"] for m in manifests.values())
    malformed = rows - sum(m["rows_out"] for m in manifests.values())
    if malformed > allowed * rows:
        raise malformed_error(_first_reject(manifests), malformed, rows, allowed)


def _first_reject(manifests: Manifests) -> str:
    return next((m["facts"]["first_reject"] for m in manifests.values() if m["facts"]["first_reject"]), "")


def curate(ctx: Context, config: CurateConfig) -> None:
    """Turns ingest's tables into `passages` and `groups`, every row with its status.

    Raises:
        InputError: A benchmark folder is incomplete.
        RuntimeError: A row was lost or taken twice between the steps.
    """
    raw = ctx.inputs.get(config.documents) or Artifact(ctx.resolve(config.documents))
    run = partial(ctx.draft.map, num_cpus=config.execution.num_cpus)
    folders = {f"benchmark-{i:03d}": ctx.resolve(ref) for i, ref in enumerate(config.benchmarks)}
    run(folders, partial(_index_benchmark, config), name=f"{ctx.name}: index benchmarks")
    index_files = tuple(ctx.draft.part(key, "benchmark_texts") for key in folders)
    forgotten = frozenset() if config.forgotten is None else read_forgotten(ctx.resolve(config.forgotten))
    facts: dict[str, Any] = {"by_source": {}, "ids_read": {}, "forgotten": len(forgotten)}
    leaks: dict[str, Counter[str]] = {}
    for table, final, mapper, reducer in (("documents", "passages", map_documents, reduce_passages),
                                          ("groups", "groups", map_groups, reduce_groups)):
        work = dict(_slices(raw, table, config.partition_bytes))
        run(work, partial(mapper, config, index_files, forgotten), name=f"{ctx.name}: clean {table}")
        mapped = _chosen(ctx.draft.committed(), work)
        _check_read(raw, table, mapped)
        buckets = {f"reduce-{final}-{b:03d}": {"bucket": b} for b in range(config.buckets)
                   if any(bucket_table(final, b) in m["tables"] for m in mapped.values())}
        parts = f"{ctx.draft.uri}/parts"
        places = [(f"{parts}/{m['directory']}", frozenset(m["tables"])) for m in mapped.values()]
        run(buckets, partial(reducer, places), name=f"{ctx.name}: dedup {final}")
        reduced = _chosen(ctx.draft.committed(), buckets)
        _check_buckets(final, mapped, buckets, reduced)
        facts["by_source"][final] = _by_source(reduced)
        facts["ids_read"][table] = add_checksums(m["facts"]["ids_read"] for m in mapped.values())
        for manifest in mapped.values():
            for name, counts in manifest["facts"].items():
                if name != "ids_read":
                    leaks.setdefault(name, Counter()).update(counts)
    facts |= {name: dict(counts) for name, counts in leaks.items()}
    with ctx.draft.attempt(_SUMMARY) as attempt:
        attempt.count(facts=facts)


def read_forgotten(path: str) -> frozenset[int]:
    """Returns the text hashes of a file of forgotten passages: an id and a hash a line.

    Raises:
        InputError: There is no such file, or a line holds something else; names the line.
    """
    fs, local = filesystem(os.path.expanduser(path))
    if not fs.isfile(local):
        raise InputError(path, "there is no such file of forgotten passages", "Make an empty one")
    hashes = set()
    for number, line in enumerate(fs.cat_file(local).decode().splitlines(), 1):
        if not re.fullmatch(r"\d+ \d+", line.strip()):
            remedy = "Let jobs/forget.py write the file"
            raise InputError(f"{path}:{number}", "it is no passage id and text hash", remedy)
        hashes.add(int(line.split()[1]))
    return frozenset(hashes)


def _index_benchmark(config: CurateConfig, key: str, path: str, attempt: Attempt) -> None:
    benchmark = benchmark_folder.load(path)
    table = benchmark_texts(benchmark, partial(normalize, config=config.normalize), config.min_gold_chars)
    attempt.write("benchmark_texts", [table], BENCHMARK_TEXTS)


def _slices(raw: Artifact, table: str, partition_bytes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cuts a table's parts at row groups: partitions of about so many bytes, whatever size the raw files
    had.
    """
    for manifest in raw.partitions():
        note = manifest["tables"].get(table)
        if not note or not note["rows"]:
            continue
        path = f"{raw.uri}/parts/{manifest['directory']}/{note['file']}"
        edges, held = [0], 0
        metadata = open_parquet(path).metadata
        for group in range(metadata.num_row_groups):
            if held and held + metadata.row_group(group).total_byte_size > partition_bytes:
                edges, held = [*edges, group], 0
            held += metadata.row_group(group).total_byte_size
        for number, (start, end) in enumerate(zip(edges, [*edges[1:], metadata.num_row_groups], strict=True)):
            yield f"map-{manifest['key']}-{number:04d}", {"file": path, "start": start, "end": end}


def _chosen(done: Manifests, work: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {key: done[key] for key in work}


def _check_read(raw: Artifact, table: str, mapped: Manifests) -> None:
    notes = [m["tables"][table] for m in raw.partitions() if table in m["tables"]]
    given = sum(n["rows"] for n in notes), add_checksums(n["id_sum"] for n in notes)
    taken = (sum(m["rows_in"] for m in mapped.values()),
             add_checksums(m["facts"]["ids_read"] for m in mapped.values()))
    _same(f"{table} of the input and those read", given, taken)


def _check_buckets(
    table: str, mapped: Manifests, buckets: Mapping[str, Mapping[str, int]], reduced: Manifests
) -> None:
    for key, item in buckets.items():
        name = bucket_table(table, item["bucket"])
        notes = [m["tables"][name] for m in mapped.values() if name in m["tables"]]
        final = reduced[key]["tables"][table]
        given = sum(n["rows"] for n in notes), add_checksums(n["id_sum"] for n in notes)
        _same(f"{name} of the map and the reduce step", given, (final["rows"], final["id_sum"]))


def _same(what: str, given: tuple[int, str], taken: tuple[int, str]) -> None:
    if given != taken:
        raise RuntimeError(f"{what} differ: {given} and {taken} (rows, sum of their ids)")


def _by_source(reduced: Manifests) -> dict[str, dict[str, int]]:
    total: dict[str, Counter[str]] = {}
    for manifest in reduced.values():
        for source, counts in manifest["facts"]["by_source"].items():
            total.setdefault(source, Counter()).update(counts)
    return {source: dict(counts) for source, counts in total.items()}
