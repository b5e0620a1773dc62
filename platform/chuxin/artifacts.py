"""Artifacts: a stage's result is a directory of parts that only a manifest, written last, makes real.

    workspace/finetune-3f9c0a71b2d4/
        manifest.json            the stage is committed; written once every partition is
        partitions/KEY.json      one partition is committed; names its attempt, rows, drops
        parts/KEY-ATTEMPT/       one attempt's files: Parquet tables and free-form files
        state/                   what a stage keeps to resume (training checkpoints); gone once committed

A partition is computed into a directory of its own attempt and exists once its small manifest does, so a kill at any
moment loses only what was in flight and a rerun computes only what is missing. Nothing is ever moved: on object
stores a move is a copy and a delete. Leaves out: what is computed (the stages) and in which order (runner.py).
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chuxin.errors import InputError, find_input_error
from chuxin.files import fetched, filesystem, is_local, open_parquet, read_json, write_json

if TYPE_CHECKING:
    from chuxin.runner import Context

ROWS_A_GROUP = 8192
_MASK_64 = (1 << 64) - 1


class Attempt:
    """One partition being computed, in any process: a directory of its own and the notes for its manifest."""

    def __init__(self, artifact_uri: str, key: str) -> None:
        self.key = key
        self.uri = f"{artifact_uri}/parts/{key}-{uuid.uuid4().hex[:8]}"
        self._artifact_uri = artifact_uri
        # Free-form files need a real directory: on object stores one that is uploaded at the commit.
        local = is_local(self.uri)
        self.directory = filesystem(self.uri)[1] if local else tempfile.mkdtemp(prefix="chuxin-attempt-")
        os.makedirs(self.directory, exist_ok=True)
        self.tables: dict[str, dict[str, Any]] = {}
        self.rows_in = self.rows_out = 0
        self.drops: Counter[str] = Counter()
        self.histograms: dict[str, list[int]] = {}
        self.facts: dict[str, Any] = {}
        self._started = (time.time(), time.process_time())

    def path(self, name: str) -> str:
        """Returns the local path for a free-form file or directory of this partition."""
        return posixpath.join(self.directory, name)

    def write(
        self, table: str, batches: Iterable[pa.Table | pa.RecordBatch], schema: pa.Schema, id_column: str | None = None
    ) -> int:
        """Streams rows into this partition's file of a table; every batch becomes at least one row group.

        Args:
            table: The table's name.
            batches: Rows; cast to `schema`.
            schema: See schema.py.
            id_column: If given, its values must be unique here; their sum goes to the manifest, so that the next
                stage can check that it took each once.

        Returns:
            The number of rows.

        Raises:
            RuntimeError: An id occurs twice.
        """
        rows, ids = 0, []
        with pq.ParquetWriter(self.path(f"{table}.parquet"), schema, compression="zstd") as writer:
            for batch in batches:
                part = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
                part = part.select(schema.names).cast(schema)
                writer.write_table(part, row_group_size=ROWS_A_GROUP)
                rows += part.num_rows
                if id_column:
                    ids.append(part[id_column].to_numpy())
        note: dict[str, Any] = {"rows": rows, "file": f"{table}.parquet"}
        if id_column:
            note["id_sum"] = checksum(ids)
            if len(np.unique(np.concatenate(ids))) != rows if ids else False:
                raise RuntimeError(f"{self.key}: table {table} holds an {id_column} twice")
        self.tables[table] = note
        return rows

    def count(
        self, rows_in: int = 0, rows_out: int = 0, drops: Mapping[str, int] | None = None,
        histograms: Mapping[str, Sequence[int]] | None = None, facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds to the partition's counts: rows, drops by reason, histograms by bin. Facts are set, not added."""
        self.rows_in += rows_in
        self.rows_out += rows_out
        self.drops.update(drops or {})
        for name, bins in (histograms or {}).items():
            self.histograms[name] = add_bins(self.histograms.get(name, []), bins)
        self.facts.update(facts or {})

    def commit(self) -> dict[str, Any]:
        """Writes the partition's manifest: from here on the attempt is the partition."""
        if not is_local(self.uri):
            fs, path = filesystem(self.uri)
            fs.put(self.directory + "/", path, recursive=True)
        wall, cpu = self._started
        manifest = {
            "key": self.key, "directory": posixpath.basename(self.uri), "tables": self.tables,
            "files": sorted(os.listdir(self.directory)), "rows_in": self.rows_in, "rows_out": self.rows_out,
            "drops": dict(self.drops), "histograms": self.histograms, "facts": self.facts,
            "seconds": round(time.time() - wall, 3), "cpu_seconds": round(time.process_time() - cpu, 3),
        }
        write_json(f"{self._artifact_uri}/partitions/{self.key}.json", manifest)
        return manifest


class Artifact:
    """A committed artifact, read-only."""

    def __init__(self, uri: str) -> None:
        manifest = read_json(f"{uri}/manifest.json")
        if manifest is None:
            raise InputError(uri, "this is not a committed artifact (it has no manifest.json)", "Run its stage first")
        self.uri, self.manifest = uri.rstrip("/"), manifest
        self.fingerprint: str = manifest["fingerprint"]

    def partitions(self) -> list[dict[str, Any]]:
        """Returns the partitions' manifests in the order of their keys."""
        return self.manifest["partitions"]

    def parts(self, table: str) -> list[str]:
        """Returns the Parquet files of a table, in the order of the partitions' keys."""
        return [f"{self.uri}/parts/{p['directory']}/{p['tables'][table]['file']}"
                for p in self.partitions() if table in p["tables"]]

    def read(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads a table whole. For small tables: stages read parts."""
        parts = self.parts(table)
        if not parts:
            raise InputError(self.uri, f"it holds no table `{table}`", "Give the artifact of another stage")
        return pa.concat_tables(open_parquet(p).read(columns=columns) for p in parts)

    def path(self, name: str) -> str:
        """Returns the local path of a free-form file or directory; on object stores it is fetched first."""
        holder = next((p for p in self.partitions() if name in p["files"]), None)
        if holder is None:
            raise InputError(self.uri, f"it holds no file `{name}`", "Give the artifact of another stage")
        return fetched(f"{self.uri}/parts/{holder['directory']}/{name}")


def open_artifact(uri: str) -> Artifact | None:
    """Opens a committed artifact; None where nothing can be read, or a `manifest.json` is another tool's."""
    try:
        manifest = read_json(f"{uri}/manifest.json")
    except (InputError, OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and {"stage", "fingerprint", "inputs", "partitions"} <= manifest.keys()
    return Artifact(uri) if ours else None


class Draft:
    """An artifact under construction. `state` is a directory that survives restarts and goes with the commit."""

    def __init__(self, uri: str, fingerprint: str, describe: Mapping[str, Any], log: Callable[[str], None]) -> None:
        self.uri, self.fingerprint = uri.rstrip("/"), fingerprint
        self.state = f"{self.uri}/state"
        self._describe, self._log = dict(describe), log
        self._expected = set[str]()

    def committed(self) -> dict[str, dict[str, Any]]:
        """Returns the manifests of the partitions that are done, by key."""
        fs, path = filesystem(f"{self.uri}/partitions")
        fs.invalidate_cache()  # object stores' clients remember listings from before workers wrote
        if not fs.exists(path):
            return {}
        names = sorted(posixpath.basename(f) for f in fs.ls(path, detail=False) if f.endswith(".json"))
        manifests = (read_json(f"{self.uri}/partitions/{name}") for name in names)
        return {m["key"]: m for m in manifests}

    def part(self, key: str, table: str) -> str:
        """Returns the Parquet file of a table that a committed partition of this draft wrote."""
        manifest = read_json(f"{self.uri}/partitions/{key}.json")
        return f"{self.uri}/parts/{manifest['directory']}/{manifest['tables'][table]['file']}"

    def map(
        self, work: Mapping[str, Any], fn: Callable[[str, Any, Attempt], None], *, name: str, num_cpus: float = 1,
        memory: int | None = None, num_gpus: float = 0, actors: bool = False,
    ) -> None:
        """Computes every partition that is not committed yet, each as one Ray task named `name`.

        Args:
            work: Item of each partition, by key; small and picklable (paths and ranges, not rows).
            fn: Called with (key, item, attempt) on a worker; the partition is committed when it returns.
            name: Operator name on the dashboard.
            num_cpus: Of a task.
            memory: Bytes that a task reserves, or None.
            num_gpus: Of a task; it sees those alone.
            actors: Tasks run in Ray actors, as many as the cluster has room for at the beginning, which take partitions
                in the order of `work`. Each has an `fn` of its own, which finds what it put into itself for an earlier.

        Raises:
            InputError: Whatever the first failing task raised of that kind, or no node has so many GPUs.
        """
        import ray

        if num_gpus > max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0):
            raise InputError(name, f"a task asks for {num_gpus:g} GPU, and no node has one",
                             "Set use_gpu of the stage's execution to false, or add a node")

        self._expected |= set(work)
        done = self.committed()
        missing = [key for key in work if key not in done]
        if not missing:
            return
        rows = [{"key": key, "item": work[key]} for key in missing]
        each = {"num_cpus": num_cpus, "num_gpus": num_gpus or None, "memory": memory}
        started, reported = time.time(), 0.0
        with contextlib.closing((_in_actors if actors else _in_tasks)(self.uri, fn, rows, name, each)) as made:
            for count, row in enumerate(made, 1):
                if row["error"]:
                    raise InputError(*row["error"])
                elapsed = time.time() - started
                if elapsed - reported > 5 or count == len(missing):
                    reported = elapsed
                    # The first to end tells nothing of the others: they may be the large ones.
                    left = elapsed / count * (len(missing) - count) if 10 * count >= len(missing) else None
                    guess = "" if left is None else f", about {left:.0f} s left"
                    self._log(f"{name}: {count}/{len(missing)} partitions, {elapsed:.0f} s{guess}")

    @contextlib.contextmanager
    def attempt(self, key: str) -> Iterator[Attempt]:
        """One partition in this process: committed when the block ends without an exception."""
        self._expected.add(key)
        attempt = Attempt(self.uri, key)
        yield attempt
        attempt.commit()

    def close(self, seconds: float = 0.0) -> Artifact:
        """Checks that every expected partition is committed, writes the manifest, clears what attempts left.

        Args:
            seconds: Wall time of all drivers that worked on it; 0 where none is counted.

        Raises:
            RuntimeError: A partition is missing or stands there that this stage did not ask for.
        """
        done = self.committed()
        if set(done) != self._expected:
            raise RuntimeError(f"{self.uri}: partitions {sorted(set(done) ^ self._expected)[:5]} do not match the work")
        partitions = [done[key] for key in sorted(done)]
        total = {
            "rows_in": sum(p["rows_in"] for p in partitions), "rows_out": sum(p["rows_out"] for p in partitions),
            "drops": dict(sum((Counter(p["drops"]) for p in partitions), Counter())),
            "histograms": _sum_histograms(p["histograms"] for p in partitions),
            "facts": {k: v for p in partitions for k, v in p["facts"].items()},
            "cpu_seconds": round(sum(p["cpu_seconds"] for p in partitions), 3),
            "seconds": round(seconds, 3),
        }
        write_json(f"{self.uri}/manifest.json",
                   {**self._describe, **total, "fingerprint": self.fingerprint, "partitions": partitions})
        artifact = Artifact(self.uri)
        clear(artifact)
        return artifact


def input_files(ctx: Context, ref: str, table: str) -> list[str]:
    """Returns the Parquet files of an artifact's table, or those that a path or glob names.

    Args:
        ctx: Its inputs are the artifacts that a reference may name.
        ref: A stage's name, the URI of an artifact, or of a folder or file of Parquet, or a glob.
        table: Taken from artifacts; of other files every one counts.

    Raises:
        InputError: There are none.
    """
    stage = ref.partition(":")[0]
    if stage in ctx.inputs:
        files = ctx.inputs[stage].parts(table)
    elif read_json(f"{ref}/manifest.json") is not None:
        files = Artifact(ref).parts(table)  # its other files are other tables and dead attempts
    else:
        fs, path = filesystem(ref)
        found = fs.glob(path) if "*" in path else fs.find(path)
        files = sorted(fs.unstrip_protocol(f) for f in found if f.endswith(".parquet"))
    if not files:
        raise InputError(f"{ctx.name}: {ref}", f"it holds no table `{table}`", "Name a stage or Parquet files that do")
    return files


def clear(artifact: Artifact) -> None:
    """Removes what only an unfinished artifact needs: attempts that lost, and the state."""
    fs, root = filesystem(artifact.uri)
    fs.invalidate_cache()
    if fs.exists(f"{root}/state"):
        fs.rm(f"{root}/state", recursive=True)
    if not is_local(artifact.uri):
        return  # an object store's lifecycle rule removes parts that no manifest names
    kept = {p["directory"] for p in artifact.partitions()}
    for directory in Path(root, "parts").iterdir():
        if directory.name not in kept:
            shutil.rmtree(directory)


def _in_tasks(
    uri: str, fn: Callable[[str, Any, Attempt], None], rows: list[dict[str, Any]], name: str, each: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    import ray

    def task(row: dict[str, Any]) -> dict[str, Any]:
        return _run_partition(uri, fn, row)

    task.__name__ = task.__qualname__ = name  # the operator's name on the dashboard: Map(curate)
    yield from ray.data.from_items(rows, override_num_blocks=len(rows)).map(task, **each).iter_rows()


def _in_actors(
    uri: str, fn: Callable[[str, Any, Attempt], None], rows: list[dict[str, Any]], name: str, each: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Not Ray Data's pool of actors: it gave two partitions to one of two actors, and grows by one actor at a time."""
    import ray

    class Worker:
        def begin(self) -> None:
            return None

        def compute(self, row: dict[str, Any]) -> dict[str, Any]:
            return _run_partition(uri, fn, row)

    Worker.__name__ = Worker.__qualname__ = name  # on the dashboard
    made = ray.remote(Worker).options(max_restarts=-1, max_task_retries=-1, **each)
    takes = {"CPU": each["num_cpus"], "GPU": each["num_gpus"], "memory": each["memory"]}
    places = room((node["Resources"] for node in ray.nodes() if node["Alive"]), takes)
    actors = [made.remote() for _ in range(max(1, min(len(rows), places)))]
    # Partitions go to actors that have their place: one that waits for it, because others hold it, gets none.
    busy = {actor.begin.remote(): actor for actor in actors}
    try:
        left, count = iter(rows), 0
        while count < len(rows):
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            actor, row = busy.pop(ready), ray.get(ready)
            following = next(left, None)
            if following is None:
                ray.kill(actor)  # its place is free for others
            else:
                busy[actor.compute.options(name=name).remote(following)] = actor
            if row is not None:
                count += 1
                yield row
    finally:
        for actor in actors:
            ray.kill(actor)


def room(nodes: Iterable[Mapping[str, float]], takes: Mapping[str, float | None]) -> int:
    """Returns how many workers nodes have room for, whoever holds it now.

    Args:
        nodes: Resources of each node, by Ray's names.
        takes: What a worker takes of them; one that takes nothing counts once a node.
    """
    wanted = {name: number for name, number in takes.items() if number}
    return sum(min((int(node.get(name, 0) / number + 1e-6) for name, number in wanted.items()), default=1)
               for node in nodes)  # fmt: skip


def _run_partition(uri: str, fn: Callable[[str, Any, Attempt], None], row: dict[str, Any]) -> dict[str, Any]:
    attempt = Attempt(uri, row["key"])
    try:
        fn(row["key"], row["item"], attempt)
        attempt.commit()
    except (InputError, OSError) as error:
        known = find_input_error(error)
        if known is None:
            raise
        # A user's error travels as data: Ray Data's own wrapper loses the cause on its way to the driver.
        return {"key": row["key"], "error": [known.where, known.problem, known.remedy]}
    return {"key": row["key"], "error": []}


def checksum(ids: Iterable[np.ndarray]) -> str:
    """Sums int64 ids modulo 2^64, whatever their order: equal sums and counts mean the same ids were taken.

    Returned as text because JSON readers round integers beyond 2^53.
    """
    total = 0
    for part in ids:
        total = (total + int(part.astype(np.uint64).sum(dtype=np.uint64))) & _MASK_64
    return str(total)


def add_checksums(sums: Iterable[str]) -> str:
    """Adds checksums of disjoint parts."""
    return str(sum(map(int, sums)) & _MASK_64)


def add_bins(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Adds two histograms over the same bins; the shorter is padded with zeros."""
    size = max(len(left), len(right))
    pad = [list(side) + [0] * (size - len(side)) for side in (left, right)]
    return [a + b for a, b in zip(*pad, strict=True)]


def _sum_histograms(parts: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    total: dict[str, list[int]] = {}
    for part in parts:
        for name, bins in part.items():
            total[name] = add_bins(total.get(name, []), bins)
    return total
