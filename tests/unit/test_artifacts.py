"""Artifacts without Ray: what a kill leaves behind is never read, ids are checked, sums add up."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pyarrow as pa
import pytest

from chuxin.artifacts import Artifact, Attempt, Draft, add_checksums, checksum, clear, input_files
from chuxin.errors import InputError, find_input_error
from chuxin.files import filesystem, write_json
from chuxin.runner import Context

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids), "text": [f"第{i}行" for i in ids]})


def draft(path: Path) -> Draft:
    return Draft(str(path / "stage-1"), "f" * 32, {"stage": "stage"}, print)


def test_an_artifact_without_manifest_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with draft(tmp_path).attempt("a") as attempt:
        attempt.write("table", [rows(1)], SCHEMA)
    with pytest.raises(InputError, match="not a committed artifact"):
        Artifact(str(tmp_path / "stage-1"))


def test_a_killed_attempt_is_invisible_and_is_cleared_at_the_close(tmp_path: Path) -> None:
    work = draft(tmp_path)
    killed = Attempt(work.uri, "a")
    killed.write("table", [rows(7, 8)], SCHEMA, "id")
    assert work.committed() == {}
    with work.attempt("a") as attempt:
        attempt.write("table", [rows(1, 2), rows(3)], SCHEMA, "id")
        attempt.count(rows_in=4, rows_out=3, drops={"short": 1}, histograms={"chars": [0, 3]})
    artifact = work.close()
    assert artifact.read("table")["id"].to_pylist() == [1, 2, 3]
    assert not Path(killed.directory).exists()
    assert artifact.manifest["drops"] == {"short": 1} and artifact.manifest["histograms"] == {"chars": [0, 3]}


def test_what_a_kill_after_the_manifest_left_is_cleared_later(tmp_path: Path) -> None:
    work = draft(tmp_path)
    with work.attempt("a") as attempt:
        attempt.write("table", [rows(1)], SCHEMA)
    artifact = work.close()
    left = Attempt(work.uri, "a")
    (tmp_path / "stage-1" / "state").mkdir()
    clear(artifact)
    assert not Path(left.directory).exists() and not (tmp_path / "stage-1" / "state").exists()
    assert artifact.read("table").num_rows == 1


def test_an_exception_commits_nothing(tmp_path: Path) -> None:
    work = draft(tmp_path)
    with pytest.raises(ValueError), work.attempt("a"):
        raise ValueError("stop")
    assert work.committed() == {}


def test_a_manifest_names_every_expected_partition_or_is_not_written(tmp_path: Path) -> None:
    work = draft(tmp_path)
    with work.attempt("a"):
        pass
    other = draft(tmp_path)
    with pytest.raises(RuntimeError, match="do not match"):
        other.close()
    assert not (tmp_path / "stage-1" / "manifest.json").exists()


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    attempt = Attempt(str(tmp_path / "stage-1"), "a")
    with pytest.raises(RuntimeError, match="twice"):
        attempt.write("table", [rows(1, 2), rows(2)], SCHEMA, "id")


def test_checksums_do_not_depend_on_order_or_cut() -> None:
    ids = pa.array([2**63 - 1, 5, 2**62, 17]).to_numpy()
    assert checksum([ids]) == checksum([ids[::-1]]) == add_checksums([checksum([ids[:1]]), checksum([ids[1:]])])
    assert checksum([ids]) != checksum([ids[:3]])


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x.json"
    write_json(str(target), {"键": 1})
    assert json.loads(target.read_text()) == {"键": 1}
    assert [p.name for p in target.parent.iterdir()] == ["x.json"]
    # One that stands keeps its mode, and what a link leads to is written, not the link.
    target.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(target)
    write_json(str(link), {"键": 2})
    assert link.is_symlink() and json.loads(target.read_text()) == {"键": 2}
    assert target.stat().st_mode & 0o777 == 0o640 and not list(tmp_path.glob("*.tmp"))


def test_object_stores_hold_the_same_artifact() -> None:
    work = Draft("memory://bucket/stage-1", "f" * 32, {"stage": "stage"}, print)
    with work.attempt("a") as attempt:
        attempt.write("table", [rows(1, 2)], SCHEMA, "id")
        Path(attempt.path("note.txt")).write_text("完")
    artifact = work.close()
    assert artifact.read("table")["id"].to_pylist() == [1, 2]
    assert Path(artifact.path("note.txt")).read_text() == "完"


def test_what_a_reference_names_of_a_table(tmp_path: Path) -> None:
    made = draft(tmp_path)
    for key, table in (("a", "groups"), ("b", "groups"), ("c", "others")):
        with made.attempt(key) as attempt:
            attempt.write(table, [rows(1)], SCHEMA)
    artifact = made.close()
    ctx = Context("pack", made, {"curate": artifact}, print)
    parts = artifact.parts("groups")
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    own = [folder / "1.parquet", folder / "below/2.parquet"]
    for file in own:
        file.write_bytes(b"")
    (folder / "note.txt").write_text("no table")
    first, second = (f"file://{file}" for file in own)
    for ref, files in {
        "curate": parts, artifact.uri: parts, parts[0]: [f"file://{parts[0]}"],
        str(own[0]): [first], str(folder): [first, second], f"{folder}/*.parquet": [first],
    }.items():  # fmt: skip
        assert input_files(ctx, ref, "groups") == files, ref
    for ref in ("curate", artifact.uri):
        with pytest.raises(InputError, match=f"pack: {ref}: it holds no table `passages`"):
            input_files(ctx, ref, "passages")
    for ref in (folder / "3.parquet", folder / "note.txt", tmp_path / "nothing", folder / "*.csv"):
        with pytest.raises(InputError, match="it holds no table `groups`"):
            input_files(ctx, str(ref), "groups")


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="foo://x: protocol not known"):
        filesystem("foo://x")


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    made = draft(tmp_path)
    for error in (OSError(errno.ENOSPC, "No space left on device", "/data/x.parquet"),
                  OSError("Error writing bytes to file. Detail: [errno 28] No space left on device")):  # Arrow's
        with pytest.raises(OSError, match="No space") as told, made.attempt("p"):
            raise error
        found = find_input_error(told.value)
        assert found is not None and "no space is left. Free some and run again" in str(found)
    assert find_input_error(FileNotFoundError(errno.ENOENT, "no", "/data")) is None
    assert str(find_input_error(PermissionError(errno.EACCES, "Permission denied", "/data"))) == (
        "/data: permission denied. Give another place, or make this one usable, and run again.")
    assert not made.committed()
