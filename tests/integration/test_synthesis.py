"""A real LLM engine under Ray: constrained answers, stages and their reruns."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "synthesis"))
import random_llm  # noqa: E402  (beside the unit tests)

import chuxin.synthesis.llm as llm_module
from chuxin.artifacts import Artifact, Draft
from chuxin.errors import InputError
from chuxin.ids import text_hash
from chuxin.runner import Context
from chuxin.schema import KEEP, PASSAGES
from chuxin.synthesis.calls import CallFailed, seed_of, verdict, writing
from chuxin.synthesis.config import JudgeConfig, LLMConfig, LLMExecution, Sampling, SynthesizeConfig
from chuxin.synthesis.llm import LLMPool
from chuxin.synthesis.parse import read_queries
from chuxin.synthesis.pipeline import judge, synthesize
from chuxin.synthesis.render import NO, YES, Ask, describe, rich_schema

# Ray Data 2.60 warns of its own defaults when a driver first uses it.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")]
PASSAGE = "青禾公司成立于二〇一二年，总部在北京，主要产品是手机和学习用的平板。"
EXECUTION = LLMExecution(num_cpus=0.25, concurrency=16)
ROWS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("llm"))
    random_llm.save(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    source = str(Path(__file__).resolve().parents[2] / "platform")
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": source}})  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(model: str) -> Iterator[LLMPool]:
    with LLMPool(model, llm(model), EXECUTION) as pool:
        yield pool


def llm(model: str) -> LLMConfig:
    return LLMConfig(model=model, dtype="float32", max_model_len=768)


def rich(index: int, tokens: int = 160, temperature: float = 0.7):
    sampling = Sampling(temperature=temperature, max_tokens=tokens)
    asks = [Ask("question", "easy", "short"), Ask("title", "hard", "long")]
    return writing("rich", f"{PASSAGE}（{index}）", sampling, seed_of(index), rich_schema(2), count=2,
                   asks=describe(asks))  # fmt: skip


async def all_of(client, calls: list) -> list:
    return await asyncio.gather(*map(client.ask, calls), return_exceptions=True)


VERDICTS = [verdict("answered", PASSAGE, query=f"青禾公司的产品{i}") for i in range(6)]


def test_answers_are_constrained(pool: LLMPool) -> None:
    for answer in asyncio.run(all_of(pool.client, [rich(i) for i in range(4)])):
        queries = read_queries(answer.text, 2, answer.finish)
        assert queries.reason == (KEEP if answer.finish == "stop" else "cut"), answer
    verdicts = asyncio.run(all_of(pool.client, VERDICTS))
    assert all(a.text in (YES, NO) and 0 < a.score < 1 and a.output_tokens == 1 for a in verdicts)
    assert any(a.cached_tokens >= 32 for a in verdicts), "the passage's prefix was computed each time"
    with pytest.raises(CallFailed):  # this one row is refused; the engine lives on
        asyncio.run(pool.client.ask(verdict("answered", PASSAGE * 60, query="太长")))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    names = "甲乙丙丁戊己庚辛壬癸子丑"
    texts = [f"{name}公司成立于二〇一{i % 10}年，总部在北京，主要产品是手机。" for i, name in enumerate(names)]
    draft = Draft(str(folder / "curate-0"), "0" * 32, {}, print)
    for part in (0, 1):
        rows = [
            {"passage_id": i, "document_id": i, "offset": 0, "source": "web", "title": "", "text": text,
             "text_hash": text_hash(text), "n_chars": len(text), "han_share": 1.0, "holds_gold": False,
             "status": KEEP}
            for i, text in enumerate(texts) if i % 2 == part
        ]  # fmt: skip
        with draft.attempt(f"reduce-{part}") as attempt:
            attempt.write("passages", [pa.Table.from_pylist(rows, schema=PASSAGES)], PASSAGES, "passage_id")
    draft.close()
    return folder


def stage(workspace: Path, name: str, run, config, inputs: dict[str, str]) -> Artifact:
    draft = Draft(str(workspace / name), name[0] * 32, {}, print)
    run(Context(name, draft, {k: Artifact(str(workspace / v)) for k, v in inputs.items()}, print), config)
    return draft.close()


def test_stages_buy_every_answer_once(
    workspace: Path, model: str, pool: LLMPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All stages use the one engine that runs already: starting one takes most of a minute.
    monkeypatch.setattr(llm_module, "_start", lambda *_: pool._engines)
    monkeypatch.setattr(LLMPool, "__exit__", lambda *_: None)
    config = SynthesizeConfig("curate", llm(model), seed=1, queries=2, attempts=2, sampling=Sampling(max_tokens=300),
                              execution=LLMExecution(num_cpus=0.25, concurrency=1, budget_tokens=600))  # fmt: skip
    with pytest.raises(InputError, match="budget"):
        stage(workspace, "synthesize-0", synthesize, config, {"curate": "curate-0"})
    stored = len(list((workspace / "answers").glob("*.log")))
    assert stored, "what the budget bought is not stored"
    free = SynthesizeConfig("curate", llm(model), seed=1, queries=2, attempts=2, sampling=Sampling(max_tokens=300),
                            execution=EXECUTION)  # fmt: skip
    artifact = stage(workspace, "synthesize-0", synthesize, free, {"curate": "curate-0"})
    facts = artifact.manifest["facts"]["llm"]
    assert facts["calls_stored"] > 0 and artifact.manifest["rows_in"] == ROWS
    rows = artifact.read("synthetic").to_pylist()
    assert {r["passage_id"] for r in rows} == set(range(ROWS)) and all(r["model"] for r in rows)

    before = artifact.read("synthetic")
    shutil.rmtree(workspace / "synthesize-0")
    again = stage(workspace, "synthesize-0", synthesize, free, {"curate": "curate-0"})
    assert "calls_bought" not in again.manifest["facts"]["llm"]
    assert again.read("synthetic").equals(before)

    judging = JudgeConfig("synthesize", llm(model), threshold=0.0, execution=EXECUTION)
    judged = stage(workspace, "judge-0", judge, judging, {"synthesize": "synthesize-0"})
    assert judged.manifest["facts"]["llm"]["calls_bought"] >= 4 * len(judged.read("groups"))
    assert len(judged.read("judged")) == ROWS
