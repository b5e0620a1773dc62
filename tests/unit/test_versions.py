"""A stage whose code changed must have a new version: else artifacts of the old code would pass for the new one's."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_stage_versions", TESTS / "record_stage_versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_stage_has_the_version_of_its_code(recorder: ModuleType) -> None:
    recorded = json.loads(recorder.RECORD.read_text(encoding="utf-8"))
    changed = recorder.differences(recorder.current(), recorded)
    raised = [d.stage for d in changed if d.raised]
    stuck = [d.stage for d in changed if not d.raised]
    assert not stuck, f"raise `version` of {stuck} in platform/chuxin/recipe.py (or: make versions SAME_OUTPUT=1)"
    assert not raised, f"the versions of {raised} changed: run `make versions`"


def tree(folder: Path, shared: str = "WIDTH = 3") -> Path:
    package = folder / "chuxin" / "made"
    package.mkdir(parents=True, exist_ok=True)
    (folder / "chuxin" / "__init__.py").write_text("")
    (package / "__init__.py").write_text('"""A stage."""')
    (package / "pipeline.py").write_text("from chuxin.runner import Context\nfrom chuxin.made.rule import keep\n")
    (package / "rule.py").write_text('def keep(n):\n    from chuxin import shared\n    return n < shared.WIDTH\n')
    (folder / "chuxin" / "shared.py").write_text(shared)
    (folder / "chuxin" / "runner.py").write_text("class Context: ...\n")
    return folder


def test_the_hash_follows_code_through_imports_and_nothing_else(recorder: ModuleType, tmp_path: Path) -> None:
    def of(folder: Path) -> str:
        return recorder.code_hash("chuxin.made.pipeline", folder)

    before = of(tree(tmp_path))
    assert recorder.closure("chuxin.made.pipeline", tmp_path).keys() == {
        "chuxin.made.pipeline", "chuxin.made.rule", "chuxin", "chuxin.shared"}
    tree(tmp_path, '"""Words."""\n# more words\nWIDTH   =   3\n"""About the field."""\n')
    (tmp_path / "chuxin" / "runner.py").write_text("class Context:\n    field = 1\n")
    assert of(tmp_path) == before, "words, layout and the rim do not count"
    assert of(tree(tmp_path, "WIDTH = 4")) != before


def test_canonical_spelling_keeps_what_code_means(recorder: ModuleType) -> None:
    def spell(text: str) -> str:
        return "".join(recorder.canonical(recorder.ast.parse(text)))

    assert spell("x = 'a'") != spell("x = 'b'") != spell("y = 'b'")
    assert spell("f'{x!r:>3}{y}'") == spell('f"{x!r:>3}{y}"')
    assert spell("def f(a, b=1): return a") != spell("def f(a, b=2): return a")
    assert spell("def f(a):\n    'doc'\n    return a") == spell("def f(a): return a")
    assert "type_params" not in spell("def f(a): return a"), "a field of 3.12 only"


def test_recording_refuses_changed_code_under_the_old_version(
    recorder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    record = tmp_path / "stage_code.json"
    stages = {"curate": {"version": 1, "code_hash": "a"}, "pack": {"version": 1, "code_hash": "b"}}
    monkeypatch.setattr(recorder, "current", lambda: stages)
    assert recorder.main([], record) == 0 and json.loads(record.read_text()) == stages
    stages["pack"] = {"version": 1, "code_hash": "c"}
    assert recorder.main([], record) == 2 and "pack" in capsys.readouterr().err
    assert json.loads(record.read_text())["pack"]["code_hash"] == "b"
    assert recorder.main(["--same-output"], record) == 0
    stages["pack"] = {"version": 2, "code_hash": "d"}
    assert recorder.main([], record) == 0
    assert json.loads(record.read_text()) == stages
    assert recorder.differences({}, stages) == [("curate", True), ("pack", True)]
