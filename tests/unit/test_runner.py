"""Fingerprints: what is computed changes them, how it is computed does not, and changes flow downstream only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from chuxin.config import ModelRef, Ref
from chuxin.errors import InputError, find_input_error
from chuxin.runner import Stage, bind, required_cpus


@dataclass(frozen=True)
class How:
    """Execution."""

    num_cpus: float = 1
    """CPUs."""


@dataclass(frozen=True)
class First:
    """A stage that reads files."""

    path: Ref
    """Input."""
    size: int = 1
    """What."""
    execution: How = field(default_factory=How)
    """How."""

    def package_files(self) -> str:
        """As stages have it whose prompts are files."""
        return PROMPT[0]


@dataclass(frozen=True)
class Second:
    """A stage that reads a stage and a model."""

    table: Ref
    """Input."""
    model: ModelRef = ModelRef("owner/model")
    """Start."""


@dataclass(frozen=True)
class Recipe:
    """Two stages."""

    workspace: str
    """Place."""
    first: First
    """First."""
    second: Second | None
    """Second."""


PROMPT = ["写一个问题"]
STAGES = (Stage("first", "first", "m:f", 1), Stage("second", "second", "m:g", 1))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("甲")
    return Recipe(str(tmp_path / "ws"), First(Ref(str(tmp_path / "in"))), Second(Ref("first:raw/x")))


def prints(recipe: Recipe, stages: tuple[Stage, ...] = STAGES) -> dict[str, str]:
    return {b.stage.name: b.fingerprint for b in bind(recipe, stages)}


def test_how_it_runs_is_not_hashed(recipe: Recipe) -> None:
    assert prints(recipe) == prints(replace(recipe, first=replace(recipe.first, execution=How(8))))
    assert required_cpus(replace(recipe.first, execution=How(8))) == 8


def test_what_it_computes_changes_it_and_all_downstream(recipe: Recipe, tmp_path: Path) -> None:
    before = prints(recipe)
    for changed in (prints(replace(recipe, first=replace(recipe.first, size=2))),
                    prints(recipe, (STAGES[0]._replace(version=2), STAGES[1]))):
        assert changed["first"] != before["first"] and changed["second"] != before["second"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.PROMPT", ["写两个问题"])
        assert prints(recipe)["second"] != before["second"]
    downstream = prints(replace(recipe, second=replace(recipe.second, table=Ref("first:raw/y"))))
    assert downstream["first"] == before["first"] and downstream["second"] != before["second"]
    (tmp_path / "in" / "a.txt").write_text("乙")
    assert prints(recipe)["first"] != before["first"]


def test_the_place_of_an_input_does_not_change_it(recipe: Recipe, tmp_path: Path) -> None:
    before = prints(recipe)
    (tmp_path / "in").rename(tmp_path / "moved")
    assert prints(replace(recipe, first=replace(recipe.first, path=Ref(str(tmp_path / "moved"))))) == before


def test_an_artifact_whose_files_a_config_names_is_bound_as_an_input(recipe: Recipe, tmp_path: Path) -> None:
    assert [(b.inputs.keys(), b.named) for b in bind(recipe, STAGES)] == [(set(), {}), ({"first"}, {})]
    for name in "ab":
        (tmp_path / name / "parts" / "p").mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text(
            f'{{"stage": "{name}", "fingerprint": "{name}", "inputs": {{}}, "partitions": []}}')
        (tmp_path / name / "parts" / "p" / "x").write_text(name)
    named = replace(recipe, first=replace(recipe.first, path=Ref(f"{tmp_path}/?/parts/*/x")),
                    second=Second(Ref("first"), ModelRef(f"{tmp_path}/b/parts/p")))
    assert [b.named for b in bind(named, STAGES)] == [
        {f"{tmp_path}/?/parts/*/x": (f"{tmp_path}/a", f"{tmp_path}/b")},
        {f"{tmp_path}/b/parts/p": (f"{tmp_path}/b",)}]


def test_inputs_that_do_not_exist_are_named(recipe: Recipe) -> None:
    with pytest.raises(InputError, match="no/such"):
        bind(replace(recipe, first=replace(recipe.first, path=Ref("no/such"))), STAGES)
    with pytest.raises(InputError, match="no such model"):
        bind(replace(recipe, second=replace(recipe.second, model=ModelRef("./no/such"))), STAGES)


def test_a_hub_name_is_taken_only_where_the_hub_may_be_asked(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prints(recipe)["second"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="owner/model: there is no such model"):
        bind(recipe, STAGES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()  # a local folder of that name: owner/model is a path that is missing
    with pytest.raises(InputError, match="owner/model: there is no such model"):
        bind(recipe, STAGES)


def test_a_folder_given_as_uri_is_known_by_its_content(recipe: Recipe, tmp_path: Path) -> None:
    as_uri = replace(recipe, first=replace(recipe.first, path=Ref(f"file://{tmp_path}/in")))
    assert prints(as_uri) == prints(recipe)
    (tmp_path / "in" / "a.txt").write_text("乙")
    assert prints(as_uri)["first"] != prints(replace(recipe, first=replace(recipe.first, size=9)))["first"]


def test_a_glob_hashes_the_files_it_names(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir()
    (tmp_path / "in" / "deep" / "b.txt").write_text("丙")
    glob = replace(recipe, first=replace(recipe.first, path=Ref(f"{tmp_path}/in/**/*.txt")))
    before = prints(glob)
    (tmp_path / "in" / "deep" / "b.txt").write_text("丁")
    assert prints(glob)["first"] != before["first"]


def test_the_cause_is_found_through_wrappers() -> None:
    try:
        try:
            raise InputError("a:1", "b", "c")
        except InputError as inner:
            raise RuntimeError("wrapped") from inner
    except RuntimeError as outer:
        assert str(find_input_error(outer)) == "a:1: b. c."
    assert find_input_error(ValueError("x")) is None
