"""Inputs are known by name and content; unchanged files are not read twice."""

import json
import os
from pathlib import Path

import fsspec
import pytest

from chuxin.errors import InputError
from chuxin.identity import Identities

MANIFEST = '{"stage": "pack", "fingerprint": "f", "inputs": {}, "partitions": []}'


def identity(workspace: Path, ref: str) -> str:
    known = Identities(str(workspace))
    found = known.identify(ref, False, "ingest", ["sample"])
    known.remember()
    return found.name


def test_content_decides_not_time_or_place(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "x.jsonl", tmp_path / "b" / "x.jsonl"
    for file, time in ((one, 1), (other, 2)):
        file.parent.mkdir()
        file.write_text("一")
        os.utime(file, (time, time))
    assert identity(tmp_path / "w", str(one)) == identity(tmp_path / "w", str(other))
    one.write_text("二二")
    assert identity(tmp_path / "w", str(one)) != identity(tmp_path / "w", str(other))


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    file, workspace = tmp_path / "x.jsonl", tmp_path / "w"
    file.write_text("一")
    before = identity(workspace, str(file))
    note = json.loads((workspace / "file-identities.json").read_text())
    (entry,) = note.values()
    entry[-1] = "remembered"
    (workspace / "file-identities.json").write_text(json.dumps(note))
    assert identity(workspace, str(file)) != before
    os.utime(file, ns=(1, 1))
    assert identity(workspace, str(file)) == before


def test_hashes_that_cannot_be_read_are_computed_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    known = Identities(str(tmp_path))
    found = known.identify(str(tmp_path / "a.txt"), False, "curate", [])
    known.remember()
    (tmp_path / "file-identities.json").write_text("{")
    assert Identities(str(tmp_path)).identify(str(tmp_path / "a.txt"), False, "curate", []) == found


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file or folder.*an earlier stage \\(sample\\)"):
        identity(tmp_path, str(tmp_path / "none"))


@pytest.mark.parametrize("ref", ["{}/pack-1", "file://{}/pack-1/", "{}/pack-1/parts/*/model/parts/x", "{}/**/x",
                                 "{}/pa*/parts/**/x", "{}/./other/../pack-1/parts/a-1", "{}/link"])  # fmt: skip
def test_the_artifact_that_files_stand_in_is_named(tmp_path: Path, ref: str) -> None:
    workspace = tmp_path / "parts" / "ws"
    for name in ("pack-1", "other", "data"):
        inside = workspace / name / "parts" / "a-1" / "model" / "parts"
        inside.mkdir(parents=True)
        (inside / "x").write_text(name)
    (workspace / "pack-1" / "manifest.json").write_text(MANIFEST)
    (workspace / "other" / "manifest.json").write_text('another tool\'s')
    (workspace / "data" / "manifest.json").mkdir()
    (tmp_path / "manifest.json").write_text('{"fingerprint": "another tool\'s"}')
    (workspace / "link").symlink_to(workspace / "pack-1" / "parts" / "a-1" / "model")
    known = Identities(str(tmp_path / "w"))
    found = known.identify(ref.format(workspace), False, "ingest", [])
    assert found.artifacts == (str(workspace / "pack-1"),)
    for apart in ("other", "data"):
        assert known.identify(f"{workspace}/{apart}", False, "ingest", []).artifacts == ()


def test_an_artifact_of_an_object_store_is_named_by_its_uri(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/ws/pack-1/manifest.json": MANIFEST.encode(), "/ws/pack-1/parts/a/x": b"1", "/ws/y": b"2"})
    try:
        known = Identities(str(tmp_path))
        assert known.identify("memory://ws/pack-1/parts/*/x", False, "s", []).artifacts == ("memory:///ws/pack-1",)
        assert known.identify("memory://ws/y", False, "s", []).artifacts == ()
    finally:
        store.rm("/ws", recursive=True)


def test_an_artifact_whose_parts_lie_behind_a_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "disk" / "a-1").mkdir(parents=True)
    (tmp_path / "disk" / "a-1" / "x").write_text("1")
    (tmp_path / "pack-1").mkdir()
    (tmp_path / "pack-1" / "manifest.json").write_text(MANIFEST)
    (tmp_path / "pack-1" / "parts").symlink_to(tmp_path / "disk")
    known = Identities(str(tmp_path / "w"))
    found = known.identify(f"{tmp_path}/pack-1/parts/*/x", False, "ingest", [])
    assert found.artifacts == (str(tmp_path / "pack-1"),)


def test_files_of_a_stage_that_is_not_committed_are_refused(tmp_path: Path) -> None:
    for folder in ("crawl-202401311200/parts", "pack-0123456789ab/parts/a-1", "pack-0123456789ab/drivers"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "crawl-202401311200" / "parts" / "x").write_text("1")  # a name like that does not make it a stage's
    known = Identities(str(tmp_path / "w"))
    assert known.identify(f"{tmp_path}/crawl-202401311200/parts/*", False, "ingest", []).artifacts == ()
    (tmp_path / "pack-0123456789ab" / "parts" / "a-1" / "x").write_text("1")
    with pytest.raises(InputError, match="pack-0123456789ab: this stage is not committed"):
        known.identify(f"{tmp_path}/pack-0123456789ab/parts", False, "ingest", [])
