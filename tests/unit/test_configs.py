"""Every shipped config loads in its class, with every key known and every value of its type."""

from pathlib import Path

import pytest

from chuxin.config import load
from chuxin.recipe import RecipeConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "jobs" / "configs").rglob("*.yaml"))


def test_the_worlds_are_there() -> None:
    assert {"micro", "sample", "real"} <= {path.parent.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")  # where the real worlds find their files
    assert isinstance(load(RecipeConfig, str(path)), RecipeConfig)
