import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

RUN = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
BENCH = """
SETTINGS = {"numbers": 60000, "seed": 3}
calls = []

def ours():
    calls.append("ours")
    return sum(range(SETTINGS["numbers"]))

def theirs():
    calls.append("theirs")
    total = 0
    for _ in range(20):
        total = sum(i for i in range(SETTINGS["numbers"]))
    return total

def equal(a, b):
    return a == b
"""


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_run", RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prints_one_json_line_last_and_keeps_it(
    run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench_sum.py").write_text(BENCH)
    assert run.main(["sum", "--rounds", "3"], tmp_path) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed.keys() == {"name", "ratio", "ratio_min", "ratio_max", "ours", "theirs", "unit", "equal", "rounds",
                              "settings", "wall"}
    assert printed["equal"] and printed["rounds"] == 3 and printed["settings"] == {"numbers": 60000, "seed": 3}
    assert 1 < printed["ratio_min"] <= printed["ratio"] <= printed["ratio_max"]
    assert printed["ours"] < printed["theirs"] and printed["wall"]["ratio"] > 1
    kept = json.loads((tmp_path / "results" / "sum.json").read_text())
    assert kept | printed == kept and kept["machine"]["cores"] >= 1 and kept["date"]


def test_sides_take_turns_after_one_run_off_the_clock(run: ModuleType) -> None:
    calls = []
    bench = SimpleNamespace(SETTINGS={}, ours=lambda: calls.append("ours") or sum(range(9999)),
                            theirs=lambda: calls.append("theirs") or sum(range(9999)), equal=lambda a, b: a == b)
    run.measure(bench, "turns", 2)
    assert calls == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]


def test_work_of_child_processes_counts(run: ModuleType) -> None:
    import subprocess
    import sys

    burn = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    cpu, wall = run.clocked(lambda: subprocess.run([sys.executable, "-c", burn], check=True))
    assert cpu >= 0.2 and wall >= 0.2


def test_sides_that_differ_fail(run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench_wrong.py").write_text(BENCH.replace("return total", "return total + 1"))
    assert run.main(["wrong", "--rounds", "1"], tmp_path) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["equal"] is False


def test_an_unknown_name_lists_what_there_is(
    run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench_sum.py").write_text(BENCH)
    assert run.main(["sun"], tmp_path) == 2
    assert capsys.readouterr().err == "error: tests/benchmarks: no benchmark `sun`. There are: sum.\n"
