"""Records: raw files as streams of rows, each with the position that its id is made of, in bounded memory.

Three containers: JSON lines (plain files are cut at line ends into byte ranges; .gz and .zst are read
whole), one JSON array (streamed), Parquet (cut at row groups). A position is the line's byte offset in the
uncompressed file, or the index of the array's element or the table's row, so it does not depend on how a
file was cut.

Leaves out: what the fields mean (corpus/sources, pairs/sources) and what happens to malformed rows (the
pipelines).
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from chuxin.errors import InputError
from chuxin.files import filesystem
from chuxin.streams import BUFFER, open_stream

Container = Literal["lines", "array", "parquet"]

MAX_LINE_BYTES = 64 << 20
"""A longer line is set aside unread, so that a file without line ends cannot fill the memory."""
RAW_CHARS = 2000
"""How much of a malformed row is kept to look at."""
FIELD_ROWS = 100
"""If none of a file's first so many rows has a required field, the config names the wrong field."""
_SUFFIXES = {"lines": (".jsonl", ".json", ".ndjson"), "array": (".json",), "parquet": (".parquet",)}


class Malformed(ValueError):
    """A row that does not hold what its source promises; `reason` is a short code, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Part(NamedTuple):
    """What one partition reads: a whole file, a byte range of it, or some of its row groups."""

    path: str
    """Path or URI of the file."""
    file: str
    """Its name relative to the source's root: the part of a row's identity that no machine changes."""
    container: str
    start: int
    """First byte of a line range, first row group of a Parquet file, else 0."""
    end: int
    """One past the last byte or row group."""


class Record(NamedTuple):
    """One row: `value` is the parsed JSON or the Parquet row, unless `error` says why there is none."""

    position: int
    line: int
    """From 1. In a line range it counts from the range's first line: add `lines_before`."""
    value: Any
    error: str
    raw: bytes
    """The line as read; empty in the other containers."""


def list_files(path: str, container: Container) -> list[tuple[str, str, int]]:
    """Lists the files of a path, folder, glob or URI, sorted by name.

    Of a folder only files with the container's suffixes count, so that a README beside the data does no harm.

    Returns:
        (path or URI, name relative to the folder or to the glob's fixed part, bytes) of each file.

    Raises:
        InputError: There is nothing of that name, or no file of that kind.
    """
    fs, root = filesystem(path)
    if fsspec.core.has_magic(root):
        found, base = fs.glob(root, detail=True), posixpath.dirname(root[: min(map(root.find, _magic(root)))])
    elif fs.isdir(root):
        found, base = fs.find(root, detail=True), root.rstrip("/")
        found = {name: info for name, info in found.items() if _fits(name, container)}
    elif fs.exists(root):
        found, base = {root: fs.info(root)}, posixpath.dirname(root)
    else:
        raise InputError(path, "there is no such file or folder", "Correct the source's `path`")
    files = sorted((name.removeprefix(base).lstrip("/"), fs.unstrip_protocol(name), int(info["size"]))
                   for name, info in found.items() if info["type"] == "file")
    if not files:
        raise InputError(path, f"it holds no file ({', '.join(_SUFFIXES[container])}, plain or .gz or .zst)",
                         "Correct the source's `path` or `format`")
    return [(uri.removeprefix("file://"), file, size) for file, uri, size in files]


def _magic(path: str) -> list[str]:
    return [c for c in "*?[" if c in path]


def _fits(name: str, container: Container) -> bool:
    bare = name.removesuffix(".gz").removesuffix(".zst").lower()
    return bare.endswith(_SUFFIXES[container]) and not posixpath.basename(name).startswith((".", "_"))


def cut(path: str, container: Container, part_bytes: int) -> list[Part]:
    """Cuts the files of a source into parts of about `part_bytes`, always in the same way for the same
    files.
    """
    parts = []
    for uri, file, size in list_files(path, container):
        if container == "parquet":
            edges = _row_group_edges(uri, part_bytes)
        elif container == "lines" and not uri.endswith((".gz", ".zst")):
            edges = [*range(0, size, part_bytes), size] if size else [0, 0]
        else:
            edges = [0, size]
        parts += [Part(uri, file, container, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return parts


def _row_group_edges(uri: str, part_bytes: int) -> list[int]:
    edges, held = [0], 0
    with _parquet(uri) as file:
        for index in range(file.num_row_groups):
            size = file.metadata.row_group(index).total_byte_size
            if held and held + size > part_bytes:
                edges.append(index)
                held = 0
            held += size
        return [*edges, file.num_row_groups]


def read(part: Part, columns: Sequence[str] = ()) -> Iterator[Record]:
    """Streams the rows of a part; `columns` names those wanted of a Parquet file (absent ones are left out).

    Raises:
        InputError: The file is cut short or broken as a whole: a bad gzip or zstd stream, a broken JSON
            array, a Parquet file that is none. A single bad line is a Record with `error`.
    """
    if part.container == "lines":
        return _read_lines(part)
    return _read_array(part) if part.container == "array" else _read_parquet(part, columns)


def _read_lines(part: Part) -> Iterator[Record]:
    compressed = part.path.endswith((".gz", ".zst"))
    number = 0
    with open_stream(part.path) as file:
        position = 0 if compressed else _first_line(file, part.start)
        while compressed or position < part.end:
            try:
                line = file.readline(MAX_LINE_BYTES)
                size = len(line) if _whole(line) else len(line) + _skip_line(file)
            except (EOFError, OSError, zlib.error) as error:
                problem = f"the compressed file is broken or cut short after line {number} ({error})"
                raise InputError(f"{part.path}:{number + 1}", problem, "Fetch the file again") from error
            if not line:
                return
            number += 1
            yield from _parse(line, size, position, number)
            position += size


def _parse(line: bytes, size: int, position: int, number: int) -> Iterator[Record]:
    if size > len(line):
        yield Record(position, number, None, "line_too_long", line[: 4 * RAW_CHARS])
        return
    content = line.removeprefix(b"\xef\xbb\xbf") if position == 0 else line
    if not content.isspace():  # an empty last line is no row
        try:
            yield Record(position, number, orjson.loads(content), "", line)
        except orjson.JSONDecodeError:
            yield Record(position, number, None, "not_json", line)


def _whole(line: bytes) -> bool:
    return len(line) < MAX_LINE_BYTES or line.endswith(b"\n")


def _skip_line(file: BinaryIO) -> int:
    """Reads on to the line's end, in pieces; returns the bytes read."""
    skipped = 0
    while piece := file.readline(BUFFER):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _first_line(file: BinaryIO, start: int) -> int:
    """Seeks to the first line that begins at or after `start`: the line across it belongs to the range
    before.
    """
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + _skip_line(file)


def lines_before(part: Part) -> int:
    """Counts the lines before a range's first one. Reads the file up to there: only for naming a bad line."""
    if part.container != "lines" or part.start == 0:
        return 0
    count, left = 0, part.start - 1
    with open_stream(part.path) as file:
        while left > 0 and (block := file.read(min(BUFFER, left))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count + 1


def _read_array(part: Part) -> Iterator[Record]:
    import ijson

    index = 0
    with open_stream(part.path) as file:
        remedy = "Fetch the file again, or choose the format `jsonl` if every line is an object"
        try:
            if file.peek(3).startswith(b"\xef\xbb\xbf"):
                file.read(3)
            if file.peek(BUFFER)[:BUFFER].lstrip()[:1] != b"[":
                raise InputError(part.path, "it does not begin with `[`, so it is not one JSON array", remedy)
            for value in ijson.items(file, "item", buf_size=BUFFER, use_float=True):
                index += 1
                yield Record(index - 1, index, value, "", b"")
        except (ijson.JSONError, EOFError, OSError, zlib.error) as error:
            place = str(error).partition("\n")[0].removeprefix("b'").partition("\\n")[0]
            problem = f"the JSON array is broken after element {index} ({place})"
            raise InputError(f"{part.path}: element {index + 1}", problem, remedy) from error


def _read_parquet(part: Part, columns: Sequence[str]) -> Iterator[Record]:
    with _parquet(part.path) as file:
        index = sum(file.metadata.row_group(g).num_rows for g in range(part.start))
        wanted = [name for name in columns if name in file.schema_arrow.names] or None
        groups = list(range(part.start, part.end))
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=wanted):
            for value in batch.to_pylist():
                index += 1
                yield Record(index - 1, index, value, "", b"")


@contextlib.contextmanager
def _parquet(uri: str) -> Iterator[pq.ParquetFile]:
    with fsspec.open(uri, "rb") as file:
        try:
            yield pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            problem = f"this is not a whole Parquet file ({str(error).splitlines()[0]})"
            raise InputError(uri, problem, "Fetch the file again") from error


def text_of(value: Mapping[str, Any], field: str) -> str:
    """Returns a field that must be a string with something in it.

    Raises:
        Malformed: It is missing, not a string, or blank.
    """
    if field not in value:
        raise Malformed("missing_field", field)
    text = value[field]
    if not isinstance(text, str):
        raise Malformed("not_a_string", field)
    if not text or text.isspace():
        raise Malformed("empty_field", field)
    return text


def optional_text(value: Mapping[str, Any], field: str | None) -> str:
    """Returns a field if it is a string, else ""."""
    text = value.get(field) if field else None
    return text if isinstance(text, str) else ""


def rest(value: Mapping[str, Any], used: Iterable[str | None]) -> str:
    """Returns the row's other scalar fields as one JSON object, for lineage."""
    left = {k: v for k, v in value.items() if k not in used and isinstance(v, (str, int, float, bool))}
    return json.dumps(left, ensure_ascii=False)


def raw_text(record: Record) -> str:
    """Returns the first characters of a malformed row as it came."""
    if record.raw:
        raw = record.raw.decode("utf-8", "replace")
    else:
        raw = json.dumps(record.value, ensure_ascii=False, default=str)
    return raw[:RAW_CHARS].rstrip("\r\n")


def require_field(records: Iterable[Record], field: str, path: str) -> Iterator[Record]:
    """Passes records on; stops at a file of which no early row has a field that its source must have.

    Raises:
        InputError: None of the first 100 objects has it; names the fields that there are.
    """
    seen, fields, found = 0, dict[str, None](), False
    remedy = "Name the right field in the source, or correct its `format`"
    for record in records:
        if not found and isinstance(record.value, dict):
            found, seen = field in record.value, seen + 1
            fields.update(dict.fromkeys(record.value))
            if not found and seen == FIELD_ROWS:
                break
        yield record
    if seen and not found:
        there = ", ".join(list(fields)[:12]) or "none"
        problem = f"none of its first {seen} rows has the field `{field}` (there are: {there})"
        raise InputError(path, problem, remedy)
