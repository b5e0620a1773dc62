"""The stages mine, rerank and select under Ray, with kill -9 of the driver and all its processes in two of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from driver import kill_when  # noqa: E402  (beside this file)

from chuxin import runner
from chuxin.artifacts import Artifact
from chuxin.config import load
from chuxin.ids import text_hash
from chuxin.models.checkpoint import load_tokenizer, save_model
from chuxin.models.config import InitConfig
from chuxin.models.reranker import load_reranker, save_reranker
from chuxin.models.start import new_model, train_tokenizer
from chuxin.recipe import STAGES, RecipeConfig
from chuxin.schema import GROUPS, KEEP, PASSAGES

# Ray Data 2.60 warns of its own defaults when a driver first uses it.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")]
ROOT = Path(__file__).resolve().parents[2]
QUERIES, PASSAGES_EACH = 60, 4
RECIPE = """
name: killed
workspace: {workspace}
execution: {{num_cpus: 2, dashboard: false}}
mine:
  groups: ["{world}/groups.parquet"]
  passages: "{world}/passages.parquet"
  model: {world}/model
  query_max_len: 16
  passage_max_len: 32
  keep: 30
  shard_passages: 40
  query_block: 2
  spans: 2
rerank: {{candidates: mine, store: mine, model: {world}/reranker, query_max_len: 16, passage_max_len: 32}}
select:
  candidates: rerank
  store: mine
  seed: 3
  positives: {{above: null}}
  negatives: {{first_rank: 2, last_rank: 30, below: null, relative_margin: null}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages, groups of one of them each, an encoder and a cross-encoder with random weights."""
    folder = tmp_path_factory.mktemp("world")
    texts = [f"第{i // PASSAGES_EACH}家公司的第{i % PASSAGES_EACH}种产品卖到第{i * 7 % 31}个城市。"
             for i in range(QUERIES * PASSAGES_EACH)]  # fmt: skip
    rest = dict.fromkeys(PASSAGES.names) | {"source": "s", "status": KEEP}
    passages = [rest | {"passage_id": i, "document_id": i, "text": text, "text_hash": text_hash(text)}
                for i, text in enumerate(texts)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(passages, PASSAGES), folder / "passages.parquet", row_group_size=20)
    groups = []
    for i in range(QUERIES):
        query, positive = f"第{i}家公司卖到哪里", passages[i * PASSAGES_EACH + i % PASSAGES_EACH]
        own = {name: positive[name] for name in ("passage_id", "text", "text_hash")} | {"score": None}
        groups.append({"query_id": i, "query": query, "query_hash": text_hash(query), "positives": [own],
                       "negatives": [], "source": "s", "status": KEEP,
                       "lineage": {"file": None, "position": None, "passage_id": own["passage_id"]}})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(groups, GROUPS), folder / "groups.parquet", row_group_size=4)
    vocab = train_tokenizer(texts, vocab_size=300, max_len=64)
    config = InitConfig(seed=3, passages="none", max_texts=1, vocab_size=300, layers=2, hidden=32, heads=4,
                        intermediate=64, max_len=64)  # fmt: skip
    save_model(new_model(config, len(vocab)), vocab, str(folder / "model"))
    save_reranker(load_reranker(str(folder / "model"), seed=5), load_tokenizer(str(folder / "model")),
                  str(folder / "reranker"))  # fmt: skip
    return folder


def test_stages_that_are_killed_give_what_an_undisturbed_run_gives(world: Path, tmp_path: Path) -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    configs = {name: tmp_path / f"{name}.yaml" for name in ("killed", "calm")}
    for name, config in configs.items():
        config.write_text(RECIPE.format(workspace=tmp_path / name, world=world))

    def committed(stage: str, kind: str) -> list[Path]:
        return list(tmp_path.glob(f"killed/{stage}-*/partitions/{kind}*.json"))

    kill_when(configs["killed"], lambda: len(committed("mine", "search-")) >= 4)
    assert not list(tmp_path.glob("killed/mine-*/manifest.json"))
    before = {path: path.read_bytes() for path in committed("mine", "")}
    kill_when(configs["killed"], lambda: len(committed("rerank", "part-")) >= 2)
    assert not list(tmp_path.glob("killed/rerank-*/manifest.json"))
    assert all(path.read_bytes() == text for path, text in before.items())  # what was committed was not done again
    before = {path: path.read_bytes() for path in committed("rerank", "")}
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform")}})  # fmt: skip
    try:
        found, calm = (run_here(configs[name]) for name in ("killed", "calm"))
        mined, scored = found["mine"].uri, found["rerank"].uri
        apart = tmp_path / "apart.yaml"
        select = RECIPE[RECIPE.index("select:"):].replace("store: mine", f"store: {mined}")
        apart.write_text(RECIPE[:RECIPE.index("mine:")].format(workspace=tmp_path / "apart")
                         + select.replace("candidates: rerank", f'candidates: "{scored}/parts/*/candidates.parquet"')
                         .format())  # fmt: skip
        named = run_here(apart)["select"]
    finally:
        ray.shutdown()
    assert all(path.read_bytes() == text for path, text in before.items())
    # Artifacts of another workspace, named by path and by pattern, are inputs like a recipe's own.
    assert named.manifest["inputs"] == {source.uri: {"uri": source.uri, "fingerprint": source.fingerprint}
                                        for source in (found["mine"], found["rerank"])}  # fmt: skip
    assert named.read("groups").equals(found["select"].read("groups"))
    for stage, table in (("mine", "candidates"), ("rerank", "candidates"), ("select", "groups")):
        rows = found[stage].read(table)
        assert rows.equals(calm[stage].read(table)) and rows["query_id"].to_pylist() == list(range(QUERIES))


def run_here(config: Path) -> dict[str, Artifact]:
    recipe = load(RecipeConfig, str(config))
    return {bound.stage.name: runner.run_here(bound, recipe) for bound in runner.bind(recipe, STAGES)}
