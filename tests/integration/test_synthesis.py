"""A real LLM engine under Ray: constrained answers, stages and their reruns, and what is killed in the middle.

Where only the stages matter a server of the test plays the LLM: it counts what it is asked, and falls silent in time.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "synthesis"))
import quantized  # noqa: E402  (beside this file)
import random_llm  # noqa: E402  (beside the unit tests)
import served  # noqa: E402
from driver import kill_when  # noqa: E402  (beside this file)
from ray.util import placement_group_table
from scripted import ScriptedLLM, played  # noqa: E402

import chuxin.synthesis.llm as llm_module
from chuxin import runner
from chuxin.artifacts import Artifact, Draft
from chuxin.config import load
from chuxin.errors import InputError
from chuxin.ids import text_hash
from chuxin.models.location import local_directory
from chuxin.recipe import STAGES, RecipeConfig
from chuxin.runner import Context
from chuxin.schema import KEEP, PASSAGES
from chuxin.synthesis.calls import (
    PROBE,
    PROBE_VERDICT,
    Answer,
    Call,
    CallFailed,
    EngineDied,
    EngineLeft,
    seed_of,
    verdict,
    writing,
)
from chuxin.synthesis.config import JudgeConfig, LLMConfig, LLMExecution, Sampling, SynthesizeConfig
from chuxin.synthesis.ledger import Ledger
from chuxin.synthesis.llm import LLMPool, PoolClient
from chuxin.synthesis.parse import read_queries
from chuxin.synthesis.pipeline import _identity, judge, synthesize
from chuxin.synthesis.render import NO, YES, Ask, describe, rich_schema
from chuxin.synthesis.store import AnswerStore
from chuxin.synthesis.work import Crew

# Ray Data 2.60 warns of its own defaults when a driver first uses it.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")]
PASSAGE = "青禾公司成立于二〇一二年，总部在北京，主要产品是手机和学习用的平板。"
EXECUTION = LLMExecution(num_cpus=0.25, concurrency=16)
ROWS = 12
ROOT = Path(__file__).resolve().parents[2]
FIRST, WAITING = 20, 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("llm"))
    random_llm.save(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform")}})  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMPool]:
    """Held by all tests: stages that ask for such an engine find it running. To start one takes most of a minute."""
    content = _identity(str(tmp_path_factory.mktemp("hashes")), model, model, llm(model))
    with LLMPool(model, llm(model), EXECUTION, content=content) as pool:
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
    # The short calls that show whether an engine is sound stand under the same constraints.
    short, chosen = asyncio.run(all_of(pool.client, [PROBE._replace(schema=rich_schema(2)), PROBE_VERDICT]))
    assert short.text.startswith("{") and short.output_tokens == 1 and 0 < chosen.score < 1
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


def test_stages_buy_every_answer_once(workspace: Path, model: str, pool: LLMPool) -> None:
    import ray

    process = ray.get(pool._engines[0].start.remote())[0]
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
    assert ray.get(pool._engines[0].start.remote())[0] == process and standing() == 1  # one engine served them all


def test_hundreds_of_calls_outlive_their_engine(pool: LLMPool, tmp_path: Path) -> None:
    """The actor's process is killed once some answers are stored: all rows end, and none stored is sent again.

    Tasks wait for a CPU meanwhile, as partitions do: the CPU of the dead engine is not theirs.
    """
    import ray

    ended = tmp_path / "ended"

    @ray.remote(num_cpus=1)
    def busy() -> None:
        while not ended.exists():  # not a wait of Ray's, which gives the CPU away
            time.sleep(0.1)

    process = psutil.Process(ray.get(pool._engines[0].start.remote())[0])
    stored, sent = set[int](), Counter[int]()

    class Watched(PoolClient):
        async def ask(self, call: Call, *where: int | None) -> Answer:
            sent[call.subject] += 1
            assert call.subject not in stored, "a stored answer was sent again"
            return await super().ask(call, *where)

    async def work(row: int, ask) -> str:
        # Verdicts are a token each and stand first in the engine's queue: when they have come, texts are still in it.
        call = verdict("answered", PASSAGE, query=f"产品{row}") if row < FIRST else rich(row, 24)
        answer = await ask(call._replace(subject=row))
        stored.add(row)
        if len(stored) == FIRST and psutil.pid_exists(process.pid):
            process.kill()
            assert not psutil.wait_procs([process], timeout=120)[1]
        return answer.text

    crew = Crew(Watched(pool._engines, timeout=180), pool.ledger, "m", str(tmp_path), LLMExecution(concurrency=WAITING))
    others = [busy.remote() for _ in range(4)]
    results, counts = crew.run(range(WAITING), work, lambda row, error: "")
    ended.touch()
    ray.get(others)
    assert all(results) and counts["calls_bought"] == WAITING == len(stored)
    assert counts["engine_deaths"] > 0 and not counts["calls_stored"] and not counts["calls_quarantined"]
    with AnswerStore(str(tmp_path)) as store:
        assert len(store) == WAITING
    assert ray.get(pool._engines[0].start.remote())[0] != process.pid
    before = sent.copy()
    again, counts = crew.run(range(WAITING), work, lambda row, error: "")
    assert again == results and counts == {"calls_stored": WAITING} and sent == before


def test_a_lone_call_knows_whether_it_was_in_the_engine_that_died(pool: LLMPool) -> None:
    import ray

    async def killed() -> list:
        process = psutil.Process((await pool._engines[0].start.remote())[0])
        inside = [asyncio.ensure_future(pool.client.ask(rich(i))) for i in range(60)]
        await asyncio.sleep(0.3)
        waiting = asyncio.ensure_future(pool.client.ask(VERDICTS[0], 1))
        await asyncio.sleep(0.3)
        assert not waiting.done() and not all(call.done() for call in inside)
        process.kill()
        return await asyncio.gather(*inside, waiting, return_exceptions=True)

    *inside, waited = asyncio.run(killed())
    assert any(type(told) is EngineDied for told in inside) and type(waited) is EngineLeft
    answer = asyncio.run(pool.client.ask(VERDICTS[0], 1))
    assert answer.text in (YES, NO)
    ray.get(pool._engines[0].start.remote())


def test_a_ledger_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    import ray

    budget = LLMExecution(concurrency=4, budget_tokens=10**9)
    ledger = ray.remote(Ledger).options(num_cpus=0).remote(budget.budget_tokens)

    done = set[int]()

    async def work(row: int, ask) -> str:
        text = (await ask(verdict("standalone", query=f"{row}"))).text
        done.add(row)
        if len(done) == FIRST:
            ray.kill(ledger)
        return text

    crew = Crew(ScriptedLLM(lambda call: 0.9), ledger, "m", str(tmp_path), budget)
    with pytest.raises(InputError, match="the LLM's ledger: the process that counts what is bought is gone"):
        crew.run(range(10**6), work, lambda row, error: "")
    asked = sorted(done)
    results, counts = crew._replace(ledger=played()).run(asked, work, lambda row, error: "")
    assert all(results) and counts == {"calls_stored": len(asked)}


def test_the_next_stage_takes_the_engines_over(model: str) -> None:
    """With what they hold of the passages; engines of another kind, dead ones and those of a failed stage are not."""
    import ray

    def process(pool: LLMPool) -> int:
        return ray.get(pool._engines[0].start.remote())[0]

    # Other engines than those of the fixture.
    execution = LLMExecution(budget_gpu_hours=1 / 3600, max_num_seqs=17)
    call = verdict("answered", PASSAGE, query="青禾公司的总部")
    with LLMPool(model, llm(model), execution, keep=True) as pool:
        first = process(pool)
        assert "GPU hours is spent" in ray.get(pool.ledger.admit.remote())  # its model took more than a second
        asyncio.run(pool.client.ask(VERDICTS[0]))
    with LLMPool(model, llm(model), replace(execution, concurrency=3), keep=True) as pool:
        assert ray.get(pool.ledger.admit.remote()) == "" and process(pool) == first
        assert asyncio.run(pool.client.ask(call)).cached_tokens >= 32
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ZeroDivisionError), LLMPool(model, llm(model), execution, keep=True) as pool:
        assert process(pool) != first and asyncio.run(pool.client.ask(call)).text in (YES, NO)
        keeper = pool._name[1]
        ray.kill(pool.ledger)  # its requests have time to end, but only while the stage is there
        time.sleep(5)
        assert process(pool)
        raise ZeroDivisionError
    deadline = time.monotonic() + 20
    while keeper in named() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert keeper not in named()
    with LLMPool(model, llm(model), LLMExecution(max_num_seqs=3), keep=True) as pool:
        ray.kill(pool.ledger, no_restart=False)  # its node went: nothing was counted that is missed now
        deadline = time.monotonic() + 60  # the one that dies may hear the first beats
        while ray.get(pool.ledger.beat.remote("x")) == [] and not ray.get(pool.ledger.busy.remote()):
            assert time.monotonic() < deadline
    with pytest.raises(InputError, match="room"):
        LLMPool(model, llm(model), LLMExecution(engines=3))
    assert not llm_module._lingering


HOLDER = '''
import os, sys, time
import ray
from chuxin.synthesis.config import LLMConfig, LLMExecution
from chuxin.synthesis.llm import LLMPool

address, model, recipe, keep, hold = sys.argv[1:]
ray.init(address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}})
config = LLMConfig(model=model, dtype="float32", max_model_len=768)
with LLMPool(model, config, LLMExecution(max_num_seqs=18), keep=keep == "keep", recipe=recipe) as pool:
    print(ray.get(pool._engines[0].start.remote())[0], flush=True)
    while hold == "hold":
        time.sleep(1)
'''


def test_jobs_of_their_own_share_the_engines(model: str) -> None:
    """One after another and at once; a job's end ends none that another holds, nor does its failure."""
    import ray

    def job(recipe: str, keep: str = "", hold: str = "") -> tuple[subprocess.Popen, int]:
        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-c", HOLDER, address, model, recipe, keep, hold]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        return driver, int(next(line for line in driver.stdout if line.strip().isdigit()))

    execution = LLMExecution(max_num_seqs=18)
    before = standing()
    first, process = job("first", "keep")
    first.communicate(timeout=60)
    assert first.returncode == 0 and psutil.pid_exists(process)
    other, shared = job("other")
    other.communicate(timeout=60)
    assert other.returncode == 0 and shared == process
    time.sleep(5)
    assert psutil.pid_exists(process)  # they wait for the first one's recipe, whatever others do
    with LLMPool(model, llm(model), execution, recipe="first") as pool:
        assert ray.get(pool._engines[0].start.remote())[0] == process
        keeper = pool._name[1]
        second, shared = job("second")
        second.communicate(timeout=60)
        assert second.returncode == 0 and shared == process
        assert asyncio.run(pool.client.ask(VERDICTS[0])).text in (YES, NO)
        third, shared = job("third", "", "hold")
        assert shared == process
    try:
        time.sleep(5)
        assert psutil.pid_exists(process) and standing() == before + 1  # the third holds them
    finally:
        third.kill()
        third.communicate()
    with LLMPool(model, llm(model), execution, keep=True, recipe="third") as pool:  # who runs it again
        assert ray.get(pool._engines[0].start.remote())[0] == process
        with pytest.raises(InputError, match="room"):
            LLMPool(model, llm(model), LLMExecution(engines=3))
    llm_module.release_engines()
    deadline = time.monotonic() + 60  # for the keeper to learn that the third is dead
    while (keeper in named() or psutil.pid_exists(process)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert keeper not in named() and not psutil.pid_exists(process) and standing() == before


def named() -> set[str]:
    """Keepers that jobs find."""
    import ray

    found = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in found if actor["namespace"] == llm_module.NAMESPACE}


def standing() -> int:
    """Placement groups that hold something."""
    return sum(place["state"] != "REMOVED" for place in placement_group_table().values())


@pytest.mark.parametrize("layout", ["gptq", "awq", "fp8"])
def test_quantized_checkpoints_are_served(layout: str, tmp_path: Path) -> None:
    """The sample LLM's verdicts, as transformers computes them from the same weights multiplied out in fp32."""
    source = local_directory("package:sample/models/llm")
    quantized.save(source, layout, tmp_path / layout, tmp_path / "float")
    queries = ("汝川云帆中学2021年在校学生有多少", "云帆中学食堂几点开门", "汝川市云帆中学教职工人数")
    passage = "汝川市云帆中学位于城东，2021年在校学生1860人，教职工142人。"
    calls = [verdict(name, passage if name == "answered" else "", query=query)
             for name in ("answered", "standalone") for query in (*queries, "它的学生有多少")]  # fmt: skip
    config = LLMConfig(model=str(tmp_path / layout), max_model_len=512)
    with LLMPool(config.model, config, LLMExecution()) as pool:
        answers = asyncio.run(all_of(pool.client, calls))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float", dtype=torch.float32)
    yes, no = (tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))[0] for word in (YES, NO))
    differences = []
    for call in calls:
        tokens = tokenizer.apply_chat_template(call.messages, add_generation_prompt=True, return_tensors="pt")
        logits = model(tokens["input_ids"]).logits[0, -1].detach()
        differences.append(float(logits[yes] - logits[no]))
    found = [answer.logprobs[YES] - answer.logprobs[NO] for answer in answers]
    assert max(differences) - min(differences) > 8  # and bf16 makes 0.08 at most
    assert found == pytest.approx(differences, abs=0.5)


def test_engines_without_room_are_refused(model: str) -> None:
    """Ray would wait for ever for what no node has."""
    before = standing()
    for execution in (LLMExecution(engines=3), LLMExecution(cpus_per_engine=3), LLMExecution(gpus_per_engine=1)):
        with pytest.raises(InputError, match="llm.execution: .* each, and the cluster has room for [02]"):
            LLMPool(model, llm(model), execution)
    for execution, problem in ((LLMExecution(start_timeout=0.1), "1 of 1 engines did not start within 0.1 s"),
                               (LLMExecution(cpus_per_engine=0), "an engine must reserve a CPU or a GPU")):
        with pytest.raises(InputError, match=problem):
            LLMPool(model, llm(model), execution)
    with pytest.raises(ValueError):  # Ray counts in ten-thousandths
        LLMPool(model, llm(model), LLMExecution(cpus_per_engine=0.00001))
    assert standing() == before


RECIPE = """
name: killed
workspace: {workspace}
execution: {{num_cpus: 2, dashboard: false}}
synthesize:
  passages: {passages}
  llm: &llm {{model: {model}, endpoint: "{url}", served_name: qwen}}
  seed: 7
  queries: 2
  execution: &execution {{num_cpus: 0.25, concurrency: 4}}
judge: {{queries: synthesize, llm: *llm, criteria: [standalone, searchable], execution: *execution}}
"""


def run_here(config: Path) -> dict[str, Artifact]:
    recipe = load(RecipeConfig, str(config))
    return {bound.stage.name: runner.run_here(bound, recipe) for bound in runner.bind(recipe, STAGES)}


def test_stages_that_are_killed_buy_every_answer_once(workspace: Path, model: str, tmp_path: Path) -> None:
    """kill -9 of the driver with all its processes, in synthesize and then in judge, and an undisturbed run beside."""
    with served.Server().running() as server:
        def queries(request: dict) -> str:
            document = request["messages"][0]["content"].split("\n")[1]
            return json.dumps({"queries": [f"{document[:4]}在哪{i}" for i in range(2)]})

        server.reply = queries
        configs = {}
        for name in ("killed", "calm"):
            (tmp_path / name).mkdir()
            configs[name] = tmp_path / f"{name}.yaml"
            configs[name].write_text(RECIPE.format(workspace=tmp_path / name, passages=workspace / "curate-0",
                                                   model=model, url=server.url))  # fmt: skip
        verdicts = 2 * 2 * ROWS
        for limit in (ROWS // 2, ROWS + verdicts // 2):
            server.allow(limit)
            kill_when(configs["killed"], lambda: stored(tmp_path / "killed" / "answers") == limit)  # noqa: B023
        assert not list(tmp_path.glob("killed/judge-*/manifest.json"))
        server.allow(float("inf"))
        found = run_here(configs["killed"])
        assert set(server.answered.values()) == {1} and server.answered.total() == ROWS + verdicts
        assert stored(tmp_path / "killed" / "answers") == ROWS + verdicts
        calm = run_here(configs["calm"])
    for stage, table in (("synthesize", "synthetic"), ("judge", "judged"), ("judge", "groups")):
        assert found[stage].read(table).equals(calm[stage].read(table)) and len(calm[stage].read(table)) >= ROWS


def stored(answers: Path) -> int:
    """How many answers a store holds."""
    if not answers.exists():
        return 0
    with AnswerStore(str(answers)) as store:
        return len(store)
