"""Every shipped config loads in its class, with every key known and every value of its type."""

import dataclasses
from pathlib import Path

import pytest

from chuxin.config import load, refs
from chuxin.errors import InputError
from chuxin.recipe import STAGES, RecipeConfig, require_models_of_own
from chuxin.runner import bind

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "jobs" / "configs").rglob("*.yaml"))


def loaded(path: str) -> RecipeConfig:
    return load(RecipeConfig, str(ROOT / "jobs/configs" / path))


def test_the_worlds_are_there() -> None:
    assert {"micro", "sample", "real"} <= {path.parent.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")  # where the real worlds find their files
    recipe = load(RecipeConfig, str(path))
    before: set[str] = set()
    for stage in STAGES:
        section = getattr(recipe, stage.name)
        named = {ref.partition(":")[0] for ref, _ in refs(section)} & {s.name for s in STAGES} if section else set()
        assert named <= before, f"{stage.name} reads a section that is not there"
        before |= {stage.name} if section else set()


def test_refine_yaml_is_the_sample_recipe_up_to_its_stage() -> None:
    refine, recipe = loaded("sample/refine.yaml"), loaded("sample/recipe.yaml")
    assert refine.default_stage("finetune") == refine.stage == refine.sections()[-1] == "refine"
    for field in dataclasses.fields(RecipeConfig):
        own = getattr(refine, field.name)
        if own is not None and field.name != "stage":
            assert own == getattr(recipe, field.name), field.name
    bound = [{b.stage.name: b.fingerprint for b in bind(world, STAGES)} for world in (refine, recipe)]
    assert bound[0].items() <= bound[1].items()  # what the recipe has committed is found
    missing = set(recipe.sections()) - set(refine.sections())
    assert missing == {"reranker", "merge", "evaluate", "release", "serve"}


def test_a_verb_runs_the_named_section_or_its_first() -> None:
    recipe = loaded("sample/recipe.yaml")
    assert recipe.sections("finetune") == ["finetune", "refine", "reranker"]
    assert recipe.default_stage("synthesize") == "synthesize"  # and not gate, which comes first
    assert recipe.default_stage("finetune") == "finetune" and recipe.default_stage("pack") == "pack_pretrain"
    assert dataclasses.replace(recipe, stage="reranker").default_stage("finetune") == "reranker"
    assert dataclasses.replace(recipe, finetune=None).default_stage("finetune") == "refine"
    assert dataclasses.replace(recipe, evaluate=None).default_stage("evaluate") is None
    with pytest.raises(ValueError, match="`stage: evaluate` names no section"):
        dataclasses.replace(recipe, evaluate=None, stage="evaluate")


def test_the_samples_models_are_refused_where_its_world_is_not_made() -> None:
    """On real pairs its reranker scores most labelled positives below 0, and they would become negatives."""
    recipe = loaded("sample/recipe.yaml")
    require_models_of_own(recipe)
    with pytest.raises(InputError, match="gate: package:sample/models/llm: this model knows the sample world only"):
        require_models_of_own(dataclasses.replace(recipe, sample=None))
    sections = dict.fromkeys(("sample", "gate", "synthesize", "judge", "relabel"))
    with pytest.raises(InputError, match="rerank: package:sample/models/reranker"):
        require_models_of_own(dataclasses.replace(recipe, **sections))


def test_a_released_model_is_the_one_that_the_report_leads_with() -> None:
    for world, last in (("micro", "refine"), ("sample", "merge")):
        recipe = loaded(f"{world}/recipe.yaml")
        plain = [name for name in recipe.evaluate.systems() if name not in recipe.evaluate.bases()]
        assert recipe.evaluate.models[plain[-1]] == recipe.release.model == last
