"""records.py: positions, byte ranges, compressed and broken files, against reading the file whole."""

import gzip
import io
import json
import random
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from chuxin import records
from chuxin.errors import InputError
from chuxin.records import Part, cut, lines_before, list_files, read, require_field


def _lines(count, seed=0):
    rng = random.Random(seed)
    return [json.dumps({"n": i, "text": "字" * rng.randrange(60)}, ensure_ascii=False).encode() for i in range(count)]


def _rows(path, container="lines", part_bytes: int = 1 << 30):
    return [(part, record) for part in cut(str(path), container, part_bytes) for record in read(part)]


@pytest.mark.parametrize("part_bytes", [1, 7, 100, 4096, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_byte_ranges_give_every_line_once_at_its_offset(tmp_path: Path, part_bytes: int, end: bytes) -> None:
    lines = _lines(60)
    data = b"\n".join(lines) + end
    (tmp_path / "a.jsonl").write_bytes(data)
    rows = _rows(tmp_path, part_bytes=part_bytes)
    assert [r.value["n"] for _, r in rows] == list(range(60))
    for part, record in rows:
        assert data[record.position:].startswith(lines[record.value["n"]])
        assert record.line + lines_before(part) == record.value["n"] + 1


def test_blank_lines_count_as_lines_but_are_no_rows_and_a_bom_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"n":0}\r\n\r\n   \n{"n":1}\n')
    records_ = [r for _, r in _rows(tmp_path)]
    assert [(r.value["n"], r.line) for r in records_] == [(0, 1), (1, 4)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_have_the_positions_of_the_plain_one(tmp_path: Path, suffix: str) -> None:
    data = b"\n".join(_lines(500)) + b"\n"
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.mkdir(), packed.mkdir()
    (plain / "a.jsonl").write_bytes(data)
    half = len(data) // 2
    pieces = [data[:half], data[half:]]  # two gzip members, two zstd frames
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    (packed / f"a.jsonl{suffix}").write_bytes(b"".join(map(pack, pieces)))
    assert [tuple(r) for _, r in _rows(plain)] == [tuple(r) for _, r in _rows(packed)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_file_names_itself_and_the_line_reached(tmp_path: Path, suffix: str, share: float) -> None:
    data = b"\n".join(_lines(20000)) + b"\n"
    packed = gzip.compress(data) if suffix == ".gz" else zstandard.ZstdCompressor().compress(data)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[: int(len(packed) * share)])
    numbers = []
    with pytest.raises(InputError, match="cut short after line") as error:
        for part in cut(str(path), "lines", 1 << 30):
            numbers += (record.line for record in read(part))
    assert error.value.where == f"{path}:{len(numbers) + 1}"
    assert share < 0.9 or len(numbers) > 15000


def test_the_zstd_reader_of_the_library_would_have_lost_the_end_silently() -> None:
    packed = zstandard.ZstdCompressor().compress(b"x\n" * 200000)
    plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed[:-5]), read_across_frames=True)
    assert len(plain.read()) < 400000  # no error: this is why records.py has its own


def test_a_line_that_is_not_json_is_a_record_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n":0}\n{broken\n\xff\xfe\n{"n":"\\ud800"}\n{"n":1}\n')
    found = [r for _, r in _rows(tmp_path)]
    assert [r.error for r in found] == ["", "not_json", "not_json", "not_json", ""]
    assert records.raw_text(found[1]) == "{broken"


def test_an_endless_line_is_set_aside_without_being_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_bytes(b'{"n":0}\n' + b"x" * 5000 + b'\n{"n":1}\n' + b"y" * 3000)
    found = [r for _, r in _rows(tmp_path)]
    assert [(r.error, r.line, r.position) for r in found] == [
        ("", 1, 0), ("line_too_long", 2, 8), ("", 3, 5009), ("line_too_long", 4, 5017),
    ]
    ranges = [r for _, r in _rows(tmp_path, part_bytes=900)]
    assert [tuple(r)[0] for r in ranges] == [r.position for r in found]


def test_json_array_elements_have_their_index(tmp_path: Path) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.json").write_bytes(mark + json.dumps([{"n": i, "x": 0.5} for i in range(5)]).encode())
        found = [r for _, r in _rows(tmp_path, "array")]
        assert [(r.position, r.line, r.value) for r in found] == [(i, i + 1, {"n": i, "x": 0.5}) for i in range(5)]


@pytest.mark.parametrize(("text", "place"), [
    ('[{"n": 0}, {"n": 1}, {"n": 2', "element 3"), ('[{"n": 0}, {"n" 1}]', "element 2"), ("", "begin with"),
    ('{"n": 0}', "begin with"), ('{"n": 0}\n{"n": 1}', "begin with"), ('[{"n": 0}] more', "element 2"),
])
def test_a_broken_json_array_names_the_element(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError) as error:
        _rows(tmp_path / "a.json", "array")
    assert place in str(error.value) and str(tmp_path / "a.json") in error.value.where


def test_parquet_is_cut_at_row_groups_and_keeps_row_numbers(tmp_path: Path) -> None:
    table = pa.table({"n": list(range(1000)), "text": ["字" * 50] * 1000, "other": [1] * 1000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, use_dictionary=False)
    parts = cut(str(tmp_path), "parquet", 40000)
    assert len(parts) > 2 and parts[-1].end == 10
    found = [r for part in parts for r in read(part, ("n", "text", "absent"))]
    assert [(r.position, r.value["n"]) for r in found] == [(i, i) for i in range(1000)]
    assert set(found[0].value) == {"n", "text"}


def test_a_file_that_is_no_parquet_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a whole Parquet file"):
        cut(str(tmp_path), "parquet", 1000)


def test_files_are_sorted_and_named_relative_to_the_root(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a.jsonl.gz", "b/10.jsonl", "README.md", "_SUCCESS", "c.json.zst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [name for _, name, _ in list_files(str(tmp_path), "lines")] == [
        "a.jsonl.gz", "b/10.jsonl", "b/2.jsonl", "c.json.zst"]
    assert [name for _, name, _ in list_files(f"{tmp_path}/b/*.jsonl", "lines")] == ["10.jsonl", "2.jsonl"]
    assert [name for _, name, _ in list_files(f"{tmp_path}/b/2.jsonl", "lines")] == ["2.jsonl"]
    with pytest.raises(InputError, match="holds no file"):
        list_files(str(tmp_path), "parquet")
    with pytest.raises(InputError, match="no such file"):
        list_files(str(tmp_path / "absent"), "lines")


def test_a_field_that_no_early_row_has_stops_and_names_those_there_are(tmp_path: Path) -> None:
    def run(rows):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        part = Part(str(tmp_path / "a.jsonl"), "a.jsonl", "lines", 0, 1 << 30)
        return list(require_field(read(part), "text", part.path))

    with pytest.raises(InputError, match=r"first 100 rows has the field `text` \(there are: body, id\)"):
        run([{"body": "x", "id": 1}] * 100 + [{"text": "late"}])
    with pytest.raises(InputError, match="first 3 rows"):
        run([{"body": "x"}] * 3)
    assert len(run([{"body": "x"}] * 99 + [{"text": "in time"}])) == 100
    assert len(run(["no object"] * 5)) == 5


@pytest.mark.parametrize(("value", "reason"), [
    ({}, "missing_field"), ({"text": 5}, "not_a_string"), ({"text": None}, "not_a_string"),
    ({"text": ""}, "empty_field"), ({"text": " \n\u3000"}, "empty_field"),
])
def test_text_of_says_what_is_wrong(value: dict, reason: str) -> None:
    with pytest.raises(records.Malformed) as fault:
        records.text_of(value, "text")
    assert (fault.value.reason, fault.value.detail) == (reason, "text")


def test_rest_keeps_the_other_scalars() -> None:
    value = {"text": "x", "id": 2**70, "score": 0.5, "list": [1], "none": None, "来源": "网"}
    assert json.loads(records.rest(value, ("text", None))) == {"id": 2**70, "score": 0.5, "来源": "网"}


def test_files_behind_a_uri_read_as_local_ones(tmp_path: Path) -> None:
    data = b"\n".join(_lines(200))
    memory = fsspec.filesystem("memory")
    for name, content in (("a.jsonl", data), ("b.jsonl.gz", gzip.compress(data)), ("c/d.jsonl.zst", _zstd(data))):
        memory.pipe_file(f"/records-test/{name}", content)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    remote, local = _rows("memory://records-test", part_bytes=700), _rows(tmp_path, part_bytes=700)
    memory.rm("/records-test", recursive=True)
    assert [(p.file, p.start, *r) for p, r in remote] == [(p.file, p.start, *r) for p, r in local]
    assert len(local) == 600


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)
