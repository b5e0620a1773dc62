"""The four stages from Parquet to closed artifacts, with an LLM played by a function and partitions in this process."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import random_llm
from scripted import ScriptedLLM, document, good, played, query

from chuxin.artifacts import Artifact
from chuxin.errors import InputError
from chuxin.ids import text_hash
from chuxin.runner import Context
from chuxin.schema import CANDIDATES, GROUPS, JUDGED, KEEP, PASSAGES, SYNTHETIC
from chuxin.search.store import Chunk, write_shard
from chuxin.synthesis import pipeline
from chuxin.synthesis.calls import CallFailed, EngineDied, Unanswered
from chuxin.synthesis.config import GateConfig, JudgeConfig, LLMConfig, LLMExecution, RelabelConfig, SynthesizeConfig
from chuxin.synthesis.cut import Cutter
from chuxin.synthesis.render import CRITERIA
from chuxin.synthesis.store import remove

from ..here import HereDraft

ROWS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("llm"))
    random_llm.save(folder, layers=1, hidden=32, intermediate=32)
    return folder


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ScriptedLLM:
    client = ScriptedLLM()

    class Pool:
        def __init__(self, path: str, config: LLMConfig, execution: Any, **_: Any) -> None:
            self.client, self.ledger = client, played()

        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: object) -> None:
            return

    monkeypatch.setattr(pipeline, "LLMPool", Pool)
    return client


def text(number: int) -> str:
    return f"第{number}家公司位于北京，{'产品是手机' if number % 2 else '首页登录注册'}，成立已有{number}年。"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draft = HereDraft(str(tmp_path / "curate-0"), "c" * 32, {}, print)
    for part in (0, 1):
        rows = [
            {"passage_id": i, "document_id": i, "offset": 0, "source": "web", "title": "", "text": text(i),
             "text_hash": text_hash(text(i)), "n_chars": 9, "han_share": 1.0, "holds_gold": False,
             "status": "duplicate" if i % 10 == 9 else KEEP}
            for i in range(ROWS) if i % 4 // 2 == part
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows, schema=PASSAGES)
        with draft.attempt(f"reduce-{part}") as attempt:
            attempt.write("passages", [table[:7], table[7:]], PASSAGES, "passage_id")
    draft.close()
    return tmp_path


def stage(folder: Path, name: str, run, config, *inputs: str) -> Artifact:
    draft = HereDraft(str(folder / f"{name}-0"), name[0] * 32, {}, print)
    run(Context(name, draft, {i: Artifact(str(folder / f"{i}-0")) for i in inputs}, print), config)
    return draft.close()


def synthesize(folder: Path, model: str, **changes: Any) -> Artifact:
    config = SynthesizeConfig("curate", LLMConfig(model), seed=1, **changes)
    return stage(folder, "synthesize", pipeline.synthesize, config, "curate", *(["gate"] if config.gate else []))


def test_queries_are_written_for_every_kept_passage_once(folder: Path, model: str, client: ScriptedLLM) -> None:
    client.reply = lambda call: "胡言" if document(call) == text(5) else good(call)
    artifact = synthesize(folder, model)
    table = artifact.read("synthetic")
    assert table.schema.equals(SYNTHETIC)
    rows = {r["passage_id"]: r for r in table.to_pylist()}
    assert set(rows) == {i for i in range(ROWS) if i % 10 != 9} and len(table) == 36
    assert rows[5]["status"] == "not_json" and rows[5]["attempts"] == 3
    assert [one["raw"] for one in rows[5]["rejected"]] == ["胡言"] * 3
    assert all(r["text"] == text(i) and r["text_hash"] == text_hash(text(i)) for i, r in rows.items())
    assert artifact.manifest["drops"] == {"not_json": 1} and artifact.manifest["rows_out"] == 35
    facts = artifact.manifest["facts"]
    assert facts["llm"]["calls_bought"] == 35 + 3 and facts["llm"]["queries_kept"] == 3 * 35
    assert facts["llm"]["prompt_tokens"] == 38 * 100 and 0 < len(facts["samples"]) <= 12
    assert sum(v for k, v in facts["llm"].items() if k.startswith("kind_")) == 105


def test_a_rerun_sends_nothing_and_gives_the_same_rows(folder: Path, model: str, client: ScriptedLLM) -> None:
    first = synthesize(folder, model).read("synthetic")
    sent = client.sent.total()
    shutil.rmtree(folder / "synthesize-0")
    again = synthesize(folder, model)
    assert client.sent.total() == sent and again.read("synthetic").equals(first)
    assert again.manifest["facts"]["llm"]["calls_stored"] == sent


def test_defect_the_positive_is_the_text_that_the_llm_saw(folder: Path, model: str, client: ScriptedLLM) -> None:
    """Published: prompts show the first 512 characters of a document, and the whole document becomes the positive."""
    shown = []
    client.reply = lambda call: shown.append(document(call)) or good(call)
    synthesize(folder, model, passage_max_tokens=20)
    rows = Artifact(str(folder / "synthesize-0")).read("synthetic").to_pylist()
    assert all(len(r["text"]) < len(text(r["passage_id"])) for r in rows)
    assert {r["text"] for r in rows} == set(shown) and all(r["text_hash"] == text_hash(r["text"]) for r in rows)
    client.reply = lambda call: shown.append(document(call)) or 0.9 if call.choices else good(call)
    judged = judge(folder, model)
    assert {p["text"] for g in judged.read("groups").to_pylist() for p in g["positives"]} <= set(shown)


def judge(folder: Path, model: str, **changes: Any) -> Artifact:
    config = JudgeConfig("synthesize", LLMConfig(model), **changes)
    return stage(folder, "judge", pipeline.judge, config, "synthesize")


def test_a_sample_is_drawn_by_seed(folder: Path, model: str, client: ScriptedLLM) -> None:
    drawn = [set(synthesize(folder, model, max_passages=10).read("synthetic")["passage_id"].to_pylist())]
    shutil.rmtree(folder / "synthesize-0")
    config = SynthesizeConfig("curate", LLMConfig(model), seed=2, max_passages=10)
    other = stage(folder, "synthesize", pipeline.synthesize, config, "curate")
    drawn.append(set(other.read("synthetic")["passage_id"].to_pylist()))
    assert [len(d) for d in drawn] == [10, 10] and drawn[0] != drawn[1]


def test_judged_rows_and_groups(folder: Path, model: str, client: ScriptedLLM) -> None:
    client.reply = lambda call: (0.1 if query(call).endswith("2") else 0.8) if call.choices else good(call)
    synthesize(folder, model)
    artifact = judge(folder, model)
    judged, groups = artifact.read("judged"), artifact.read("groups")
    assert judged.schema.equals(JUDGED) and groups.schema.equals(GROUPS) and len(judged) == 36
    assert len(groups) == 72 and not any(q.endswith("2") for q in groups["query"].to_pylist())
    assert set(groups["source"].to_pylist()) == {"synthetic-web"}
    assert all(len(r["verdicts"]) == 12 for r in judged.to_pylist())
    manifest = artifact.manifest
    assert (manifest["rows_in"], manifest["rows_out"], manifest["drops"]) == (108, 72, {"standalone": 36})
    assert sum(map(sum, manifest["histograms"].values())) == 36 * 12


def test_nothing_left_is_said(folder: Path, model: str, client: ScriptedLLM) -> None:
    client.reply = lambda call: "胡言"
    with pytest.raises(InputError, match="none of 36 passages gave a query .36 × not_json"):
        synthesize(folder, model)
    shutil.rmtree(folder / "synthesize-0")
    shutil.rmtree(folder / "answers")
    client.reply = lambda call: 0.1 if call.choices else good(call)
    synthesize(folder, model)
    with pytest.raises(InputError, match="none of 108 queries is left .108 × standalone"):
        judge(folder, model)


def test_a_row_that_the_llm_cannot_take_is_its_own_status(folder: Path, model: str, client: ScriptedLLM) -> None:
    def reply(call):
        if document(call) == text(3):
            return EngineDied("poison")
        return CallFailed("too long") if document(call) == text(4) else good(call)

    client.reply = reply
    rows = {r["passage_id"]: r for r in synthesize(folder, model).read("synthetic").to_pylist()}
    assert rows[3]["status"] == "crashes_engine" and (rows[4]["status"], rows[4]["error"]) == ("llm_error", "too long")
    assert sum(r["status"] == KEEP for r in rows.values()) == 34


@pytest.mark.parametrize("fault", [Unanswered("no answer within 600 s"), ConnectionError("broken pipe")])
def test_a_passing_failure_is_not_committed(folder: Path, model: str, client: ScriptedLLM, fault: Exception) -> None:
    """After the repair a rerun asks again, and only what has no answer."""
    client.reply = lambda call: fault if document(call) == text(6) else good(call)
    with pytest.raises(InputError, match=f"1 of a partition's 7 rows got no answer .1 × .*{fault}"):
        synthesize(folder, model)
    client.reply, sent = good, client.sent.total()
    rows = {r["passage_id"]: r for r in synthesize(folder, model).read("synthetic").to_pylist()}
    assert len(rows) == 36 and {r["status"] for r in rows.values()} == {KEEP}
    client.reply = lambda call: 0.9 if call.choices and query(call) != rows[6]["queries"][0]["query"] else fault
    with pytest.raises(InputError, match="got no answer"):
        judge(folder, model)
    client.reply = lambda call: 0.9
    assert len(judge(folder, model).read("groups")) == 108
    # Three tries of a call, of a passage and of each of a query's four criteria; everything else once.
    assert sent <= 36 + 3 and client.sent["rich"] == 36 + 3
    assert sum(client.sent[name] for name in CRITERIA) == 108 * 4 + 4 * 3


def test_the_gate_spares_the_llm_what_is_not_worth_it(folder: Path, model: str, client: ScriptedLLM) -> None:
    client.reply = lambda call: (0.9 if "手机" in document(call) else 0.1) if call.choices else good(call)
    config = GateConfig("curate", LLMConfig(model), seed=1, labels=24)
    gate = stage(folder, "gate", pipeline.gate, config, "curate")
    assert client.sent["gate"] == 24 and len(gate.read("gate")) == ROWS
    status = dict(zip(*(gate.read("gate")[c].to_pylist() for c in ("passage_id", "status")), strict=True))
    assert all(status[i] == ("duplicate" if i % 10 == 9 else KEEP if i % 2 else "gate") for i in range(ROWS))
    assert gate.manifest["facts"]["gate"]["recall"] == 1.0
    written = synthesize(folder, model, gate="gate").read("synthetic")
    assert set(written["passage_id"].to_pylist()) == {i for i, s in status.items() if s == KEEP}


def test_few_verdicts_do_not_speak_for_all_passages(folder: Path, model: str, client: ScriptedLLM) -> None:
    """As where all but the short ones are too long for the LLM: the gate would keep everything."""
    client.reply = lambda call: 0.9 if call.prompt == "probe" or "第1" in document(call) else CallFailed("too long")
    config = GateConfig("curate", LLMConfig(model), seed=1, labels=ROWS)
    with pytest.raises(InputError, match=r"fit: the LLM gave a verdict on \d+ of 36 passages"):
        stage(folder, "gate", pipeline.gate, config, "curate")


def test_a_rerun_scores_by_the_gate_that_was_fitted(
    folder: Path, model: str, client: ScriptedLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.reply = lambda call: 0.9 if "手机" in document(call) else 0.1
    config = GateConfig("curate", LLMConfig(model), seed=1, labels=24)
    gate = stage(folder, "gate", pipeline.gate, config, "curate")
    rows = gate.read("gate")
    (folder / "gate-0" / "manifest.json").unlink()
    next((folder / "gate-0" / "partitions").glob("score-*")).unlink()  # killed there
    monkeypatch.setattr(pipeline.gates, "fit", None)
    again = stage(folder, "gate", pipeline.gate, config, "curate")
    assert again.read("gate").equals(rows) and again.manifest["facts"] == gate.manifest["facts"]


def test_what_was_asked_about_a_passage_can_be_forgotten(folder: Path, model: str, client: ScriptedLLM) -> None:
    """Its verdicts too, by whichever stage."""
    config = GateConfig("curate", LLMConfig(model), seed=1, labels=ROWS)
    rerank_and_mine(folder, [[candidate(3, 0.5), candidate(4, 0.5)]])

    def everything() -> None:
        for name in ("gate", "synthesize", "judge", "relabel"):
            shutil.rmtree(folder / f"{name}-0", ignore_errors=True)
        stage(folder, "gate", pipeline.gate, config, "curate")
        synthesize(folder, model)
        judge(folder, model)
        relabel(folder, model)

    everything()
    about = text_hash(text(3))
    assert remove(str(folder / "answers"), lambda value: value[-1] == about) == 1 + 1 + 3 * len(CRITERIA) + 1
    client.sent.clear()
    everything()
    assert client.sent == {"gate": 1, "rich": 1, **dict.fromkeys(CRITERIA, 3), "answered": 3 + 1}


def candidate(number: int, rerank: float | None) -> dict:
    return {"passage_id": number, "text_hash": text_hash(text(number)), "given": number == 1, "rerank": rerank,
            "dense": 0.5, "dense_rank": number}  # fmt: skip


def rerank_and_mine(folder: Path, candidates: list[list[dict]], own: str = "", held: int = 8) -> None:
    """Artifacts of the rerank stage, one group a list of candidates and row group, and of the mine stage."""
    positives = [{"passage_id": 1, "text": own, "text_hash": text_hash(own), "score": None}] if own else []
    rows = [{"query_id": q, "query": f"问{q}", "query_hash": q, "source": "s", "positives": positives, "negatives": [],
             "candidates": given, "lineage": None} for q, given in enumerate(candidates)]  # fmt: skip
    draft = HereDraft(str(folder / "rerank-0"), "r" * 32, {}, print)
    with draft.attempt("q") as attempt:
        tables = [pa.Table.from_pylist([row], schema=CANDIDATES) for row in rows]
        attempt.write("candidates", tables, CANDIDATES, "query_id")
    draft.close()
    draft = HereDraft(str(folder / "mine-0"), "m" * 32, {}, print)
    for shard in (0, 1):
        with draft.attempt(f"store-{shard}") as attempt:
            texts = [text(i) for i in range(held) if i % 2 == shard]
            hashes = np.array([text_hash(t) for t in texts])
            vectors = np.ones((len(texts), 4), np.float32)
            chunks = [Chunk(texts, vectors, {})]
            write_shard(attempt.path(f"store-{shard}"), np.arange(len(texts)), hashes, 4, chunks, 8)
    draft.close()


def relabel(folder: Path, model: str, **changes: Any) -> Artifact:
    config = RelabelConfig("rerank", "mine", LLMConfig(model), **changes)
    return stage(folder, "relabel", pipeline.relabel, config, "rerank", "mine")


def test_uncertain_candidates_are_relabelled(folder: Path, model: str, client: ScriptedLLM) -> None:
    # The best by the reranker stand last, and some were never scored.
    given = [candidate(5, None), candidate(4, -2.0), candidate(2, 0.4), candidate(3, 0.6), candidate(1, 4.0)]
    rerank_and_mine(folder, [given] * 3 + [[candidate(5, None)]])
    client.reply = lambda call: 0.9 if document(call) == text(3) else 0.2
    artifact = relabel(folder, model)
    table = artifact.read("candidates")
    assert table.schema.equals(CANDIDATES)
    labels = [[c["relabel"] for c in r["candidates"]] for r in table.to_pylist()]
    assert labels == [[None, None, "no", "yes", None]] * 3 + [[None]]
    facts = artifact.manifest["facts"]
    assert facts["llm"]["relabel_yes"] == facts["relabelled_yes"] == 3 and client.sent == {"answered": 6}
    shutil.rmtree(folder / "relabel-0")
    table = relabel(folder, model, top_k=2).read("candidates")
    labels = [[c["relabel"] for c in r["candidates"]] for r in table.to_pylist()]
    assert labels == [[None, None, None, "yes", None]] * 3 + [[None]]


def test_an_llm_that_gives_no_verdict_at_all_is_said(folder: Path, model: str, client: ScriptedLLM) -> None:
    rerank_and_mine(folder, [[candidate(2, 0.4), candidate(3, 0.6)]] * 8)
    client.reply = lambda call: "我想"  # without log-probabilities of the two
    with pytest.raises(InputError, match="no verdict on any of 16 pairs.*remove .*relabel-0 and run again"):
        relabel(folder, model)
    for name in ("rerank-0", "mine-0", "relabel-0"):
        shutil.rmtree(folder / name)
    rerank_and_mine(folder, [[candidate(2, 0.4)]])  # one alone may be the row's own
    assert relabel(folder, model).manifest["facts"]["relabelled_refused"] == 1


def test_candidates_texts_are_cut_their_own_too(folder: Path, model: str, client: ScriptedLLM) -> None:
    own = "自家的正文" * 30
    rerank_and_mine(folder, [[{**candidate(1, 0.5), "text_hash": text_hash(own)}, candidate(2, 0.5)]], own)
    shown = []
    client.reply = lambda call: shown.append(document(call)) or 0.9
    relabel(folder, model, passage_max_tokens=12)
    cutter = Cutter(model, 12)
    assert sorted(shown) == sorted([cutter.cut(own), cutter.cut(text(2))]) and all(len(t) < 30 for t in shown)


def test_candidates_without_scores_or_texts_are_said(folder: Path, model: str, client: ScriptedLLM) -> None:
    rerank_and_mine(folder, [[candidate(1, None)], []])
    with pytest.raises(InputError, match="no candidate has a score of a reranker"):
        relabel(folder, model)
    for name in ("rerank-0", "mine-0", "relabel-0"):
        shutil.rmtree(folder / name)
    rerank_and_mine(folder, [[candidate(30, 0.5)]])
    with pytest.raises(InputError, match="the passage stands in no shard of the store. Give .store. the mine stage"):
        relabel(folder, model)
    config = RelabelConfig("rerank", "curate", LLMConfig(model))
    with pytest.raises(InputError, match="holds no passage store.*mine stage"):
        stage(folder, "relabel", pipeline.relabel, config, "rerank", "curate")


def test_the_answer_stores_place_is_absolute(
    folder: Path, model: str, client: ScriptedLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    with pytest.raises(InputError, match="path answers/here is relative"):
        synthesize(folder, model, execution=LLMExecution(answers="answers/here"))
    synthesize(folder, model, execution=LLMExecution(answers="~/kept"))
    assert list((folder / "home" / "kept").glob("*.log")) and not (folder / "answers").exists()


def test_an_endpoint_is_its_url_and_name() -> None:
    llm = LLMConfig("m", endpoint="http://user:secret@a:8000/v1", served_name="qwen")
    others = replace(llm, endpoint="http://b:8000/v1"), replace(llm, served_name="other"), replace(llm, revision="b")
    names = [pipeline._identity("", "m", "m", given) for given in (llm, *others)]
    assert len(set(names)) == 4 and names[0].startswith("endpoint:qwen@") and "secret" not in names[0]
    assert pipeline._identity("", "m", "m", replace(llm, endpoint=llm.endpoint + "/")) == names[0]


def test_configs_that_make_no_sense_are_refused() -> None:
    llm = LLMConfig("m")
    for change in ({"queries": 0}, {"max_passages": 0}, {"kinds": {}}, {"lengths": {"short": 0.0}}, {"attempts": 0}):
        with pytest.raises(ValueError, match="must be"):
            SynthesizeConfig("curate", llm, seed=1, **change)
    with pytest.raises(ValueError, match="endpoint"):
        replace(llm, endpoint="http://x")
    with pytest.raises(ValueError, match="a checkpoint is known by its content"):
        replace(llm, revision="b")
    with pytest.raises(ValueError, match="threshold"):
        JudgeConfig("s", llm, threshold=2)
    with pytest.raises(ValueError, match="low"):
        RelabelConfig("r", "c", llm, low=2.0)
