"""Inputs are known by name and content; unchanged files are not read twice."""

import json
import os
from pathlib import Path

import pytest

from chuxin.errors import InputError
from chuxin.identity import Identities


def identity(workspace: Path, ref: str) -> str:
    known = Identities(str(workspace))
    found = known.identify(ref, False, "ingest", ["sample"])
    known.remember()
    return found


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


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file or folder.*an earlier stage \\(sample\\)"):
        identity(tmp_path, str(tmp_path / "none"))
