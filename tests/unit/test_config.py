"""Config: every mistake names its file and line; references are found wherever they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chuxin.config import ModelRef, Ref, load, override, refs, to_plain
from chuxin.errors import InputError


@dataclass(frozen=True)
class Source:
    """A source."""

    path: Ref
    """Where it is."""
    weight: float = 1.0
    """Its share."""


@dataclass(frozen=True)
class Whole:
    """A config with every kind of field."""

    name: str
    """Its name."""
    sources: tuple[Source, ...]
    """Several."""
    models: dict[str, ModelRef] = field(default_factory=dict)
    """By display name."""
    other: Ref | None = None
    """Optional."""
    nested: Source | None = None
    """Optional."""
    several: tuple[Ref, ...] | None = None
    """Optional."""
    named: dict[str, ModelRef] | None = None
    """Optional."""


GOOD = """\
name: 样本
sources:
  - path: sample:raw/a
    weight: 0.5
  - {path: b.jsonl}
models: {pretrained: pretrain}
other: c
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_good_file_loads_and_its_references_are_found(tmp_path: Path) -> None:
    config = load(Whole, write(tmp_path, GOOD))
    assert config.sources[0] == Source(Ref("sample:raw/a"), 0.5)
    assert list(refs(config)) == [("sample:raw/a", False), ("b.jsonl", False), ("pretrain", True), ("c", False)]
    assert to_plain(config)["sources"][1] == {"path": "b.jsonl", "weight": 1.0}


@pytest.mark.parametrize(("text", "line", "words"), [
    (GOOD.replace("weight: 0.5", "wieght: 0.5"), 4, "Did you mean `weight`"),
    (GOOD + "nested: {path: d, wait: 1}\n", 8, "unknown key `nested.wait`"),
    (GOOD.replace("0.5", "half"), 4, "`sources.0.weight`"),
    (GOOD.replace("name: 样本\n", ""), 1, "`name`"),
    (GOOD.replace("name: 样本", "name: [样本"), 2, "not YAML"),
    ("- a\n", 1, "mapping"),
    (GOOD + "name: 又一个\n", 8, "stands twice"),
])
def test_a_mistake_names_file_line_and_remedy(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load(Whole, path)
    assert str(caught.value).startswith(f"{path}:{line}: ") and words in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"no/such\.yaml"):
        load(Whole, "no/such.yaml")


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("name: 世界".encode("gbk"))
    with pytest.raises(InputError, match=r"c.yaml: this is not UTF-8 \(byte 6\). Save it as UTF-8"):
        load(Whole, str(tmp_path / "c.yaml"))


def test_overrides_reach_nested_fields(tmp_path: Path) -> None:
    config = load(Whole, write(tmp_path, GOOD + "nested: {path: d}\n"))
    changed = override(config, ["--nested.weight", "0.25", "--name", "另一个"], "test")
    assert changed.nested == Source(Ref("d"), 0.25) and changed.name == "另一个" and changed.sources == config.sources


def test_references_are_found_in_optional_containers(tmp_path: Path) -> None:
    config = load(Whole, write(tmp_path, "name: a\nsources: []\nseveral: [x, y]\nnamed: {m: z}\n"))
    assert list(refs(config)) == [("x", False), ("y", False), ("z", True)]


def test_a_flag_that_does_not_fit_is_answered_in_one_line(tmp_path: Path) -> None:
    config = load(Whole, write(tmp_path, GOOD))
    for flags in (["--bogus", "1"], ["--sources.0.weight", "half"]):
        with pytest.raises(InputError) as caught:
            override(config, flags, "test")
        assert "\n" not in str(caught.value) and flags[0].lstrip("-") in str(caught.value)
        assert str(caught.value).count("Unrecognized options") <= 1


def test_variables_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD.replace("other: c", "other: ${CHUXIN_TEST_DATA}/c"))
    with pytest.raises(InputError, match=r"recipe.yaml:7: the environment has no variable CHUXIN_TEST_DATA"):
        load(Whole, path)
    monkeypatch.setenv("CHUXIN_TEST_DATA", "/data")
    assert load(Whole, path).other == "/data/c"
