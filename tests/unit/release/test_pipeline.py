from pathlib import Path

import pytest

from chuxin.artifacts import Artifact, Attempt
from chuxin.errors import InputError
from chuxin.files import write_json
from chuxin.models.checkpoint import load_model
from chuxin.release.card import Origin
from chuxin.release.config import ReleaseConfig
from chuxin.release.pipeline import lineage, release

CONFIG = ReleaseConfig(model="finetune", name="初心-tiny", license="apache-2.0", max_len=50)


def test_the_release_is_checked_and_its_figures_are_facts(tiny_model: str, tmp_path: Path) -> None:
    attempt = Attempt(str(tmp_path / "release"), "release")
    release(CONFIG, None, [Origin("init", "f" * 32, 3, 2)], "release", tiny_model, attempt)
    assert attempt.facts["least_cosine_flagembedding"] > 0.9999
    assert attempt.facts["least_cosine_sentence_transformers"] > 0.9999
    assert attempt.facts["heads_trained"] is False
    card = Path(attempt.path("model"), "README.md").read_text()
    assert "# 初心-tiny" in card and "f" * 32 in card
    assert load_model(attempt.path("model")).max_length == 64


def test_a_length_beyond_the_model_s_is_refused(tiny_model: str, tmp_path: Path) -> None:
    config = ReleaseConfig(model="m", name="n", license="mit", max_len=4096)
    with pytest.raises(InputError, match="not 4096"):
        release(config, None, [], "release", tiny_model, Attempt(str(tmp_path), "release"))


def test_lineage_names_every_stage_once_and_inputs_first(tmp_path: Path) -> None:
    def commit(name: str, inputs: list[str]) -> str:
        given = {i: {"uri": str(tmp_path / i), "fingerprint": i} for i in inputs}
        manifest = {
            "stage": name,
            "fingerprint": name,
            "inputs": given,
            "rows_in": 2,
            "rows_out": 1,
            "partitions": [],
        }
        write_json(str(tmp_path / name / "manifest.json"), manifest)
        return str(tmp_path / name)

    commit("curate", [])
    commit("init", ["curate"])
    commit("pack", ["curate", "init"])
    uri = commit("finetune", ["init", "pack"])
    found = lineage([Artifact(uri)])
    assert [origin.stage for origin in found] == ["curate", "init", "pack", "finetune"]
    assert found[0] == Origin("curate", "curate", 2, 1)
    uri = commit("refine", ["finetune", "pack-0a1b"])  # of another workspace, and gone since
    assert lineage([Artifact(uri)]) == [Origin("pack-0a1b (gone)", "pack-0a1b", None, None), *found,
                                        Origin("refine", "refine", 2, 1)]  # fmt: skip
