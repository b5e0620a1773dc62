"""One driver a stage: a living one holds others off, a killed one does not, and their seconds add up."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chuxin import lease
from chuxin.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from chuxin import lease
with lease.held(sys.argv[1], "curate"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(artifact: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(artifact)], stdout=subprocess.PIPE, text=True,
                               env={"PYTHONPATH": str(ROOT / "platform")})  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = holder(tmp_path)
    try:
        with pytest.raises(InputError, match=rf"being computed already \(process {first.pid} on "), \
             lease.held(str(tmp_path), "curate"):
            pytest.fail("two drivers hold it")
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    with lease.held(str(tmp_path), "curate"):
        pass


def test_the_seconds_of_ended_and_killed_drivers_add_up(tmp_path: Path) -> None:
    drivers = tmp_path / "drivers"
    drivers.mkdir()
    notes = {"ended": (7.0, True, "elsewhere", time.time()), "killed": (5.0, False, "elsewhere", time.time() - 60)}
    for name, (spent, ended, host, at) in notes.items():
        note = {"host": host, "pid": 1, "born": "1", "seconds": spent, "at": at, "ended": ended}
        (drivers / f"{name}.json").write_text(json.dumps(note))
    with lease.held(str(tmp_path), "curate") as seconds:
        assert 12.0 <= seconds() < 20.0


def test_a_fresh_note_of_another_host_holds(tmp_path: Path) -> None:
    (tmp_path / "drivers").mkdir()
    note = {"host": "elsewhere", "pid": 1, "born": "1", "seconds": 5.0, "at": time.time(), "ended": False}
    (tmp_path / "drivers" / "x.json").write_text(json.dumps(note))
    with pytest.raises(InputError, match="on elsewhere"), lease.held(str(tmp_path), "curate"):
        pytest.fail("two drivers hold it")


def test_a_stage_that_fails_gives_the_lease_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), lease.held(str(tmp_path), "curate"):
        raise ValueError("broken")
    with lease.held(str(tmp_path), "curate"):
        pass


def test_a_beat_that_cannot_be_written_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without beats another host would take the driver for gone and begin as well."""
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    write, failures = lease.write_json, [OSError(28, "No space left on device")] * 3

    def failing(uri: str, value: dict) -> None:
        if not value["ended"] and failures:
            raise failures.pop()
        write(uri, value)

    with lease.held(str(tmp_path), "curate"):
        monkeypatch.setattr(lease, "write_json", failing)
        note, = (tmp_path / "drivers").glob("*.json")
        limit = time.monotonic() + 30
        while failures or json.loads(note.read_text())["seconds"] < 0.05:
            assert time.monotonic() < limit
            time.sleep(0.01)
