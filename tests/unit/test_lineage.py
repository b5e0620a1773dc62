"""A small workspace of artifacts, made by hand in the real formats, asked for stories and what to forget."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from chuxin.artifacts import Artifact, Draft
from chuxin.commands import forget_job
from chuxin.corpus.pipeline import read_forgotten
from chuxin.errors import InputError
from chuxin.forget import Found, finish_removals, remove, traces
from chuxin.lineage import Ancestry, Row, ancestry, directories, every_artifact, inputs_of, rows_with, steps_of
from chuxin.mining.queries import BLOCK
from chuxin.mining.shards import OWN
from chuxin.schema import CANDIDATES, DOCUMENTS, GROUPS, JUDGED, PASSAGES, PLAN_GROUPS, SYNTHETIC
from chuxin.synthesis.store import AnswerStore
from chuxin.why import story

SCHEMAS = {"documents": DOCUMENTS, "passages": PASSAGES, "groups": GROUPS, "synthetic": SYNTHETIC, "judged": JUDGED,
           "candidates": CANDIDATES, "plan": PLAN_GROUPS, "own": OWN, "block": BLOCK}  # fmt: skip
WRITTEN, LABELLED, OTHER = 900, 901, 902
"""Queries: one that an LLM wrote from passage 1, a labelled one whose positive is that text, one that knows neither."""


def passage(number: int, score: float | None = None) -> dict[str, Any]:
    return {"passage_id": number, "text": f"正文{number}", "text_hash": 1000 + number, "score": score}


def group(query: int, positive: int, negative: int, origin: Mapping[str, Any], source: str) -> dict[str, Any]:
    return {"query_id": query, "query": f"问题{query}", "query_hash": query, "positives": [passage(positive, 2.5)],
            "negatives": [passage(negative)], "source": source, "status": "keep",
            "lineage": {"file": None, "position": None, "passage_id": None, **origin}}


def plan_row(query: int, batch: int, passages: Sequence[int]) -> dict[str, Any]:
    held = [{"passage_id": p, "text_hash": 1000 + p, "token_ids": [5], "score": None} for p in passages]
    return {"epoch": 0, "batch": batch, "slice": 0, "row": query - 900, "query_id": query, "source": "s",
            "query_hash": query, "query_ids": [4], "lengths": [1, 1], "passages": held}


@pytest.fixture
def artifacts(tmp_path: Path) -> list[Artifact]:
    made: list[Artifact] = []

    def commit(stage: str, inputs: Sequence[str], parts: Mapping[str, Mapping[str, list]],
               facts: Mapping[str, Any] | None = None) -> None:
        given = {a.manifest["stage"]: {"uri": a.uri, "fingerprint": a.fingerprint}
                 for a in made if a.manifest["stage"] in inputs}
        draft = Draft(str(tmp_path / stage), f"{stage}-print", {"stage": stage, "version": 3, "inputs": given}, print)
        for key, tables in parts.items():
            with draft.attempt(key) as attempt:
                for table, rows in tables.items():
                    half = len(rows) // 2 or 1  # two row groups, so that a hit may lie in either
                    attempt.write(table, [pa.Table.from_pylist(rows[:half], SCHEMAS[table]),
                                          pa.Table.from_pylist(rows[half:], SCHEMAS[table])], SCHEMAS[table])
                attempt.count(facts={"batches": 2, **(facts or {})} if "plan" in tables else facts or {})
        made.append(draft.close())

    labelled = group(LABELLED, 1, 2, {"file": "pairs.jsonl", "position": 44}, "mtp")
    other = group(OTHER, 2, 3, {"file": "pairs.jsonl", "position": 99}, "mtp")
    written = group(WRITTEN, 1, 3, {"passage_id": 1}, "synthetic-web")
    documents = [{"document_id": 10 * n, "source": "web", "file": f"{n}.jsonl", "position": 7 * n, "license": "mit",
                  "text": f"正文{n}"} for n in (1, 2, 3)]
    passages = [{"passage_id": n, "document_id": 10 * n, "offset": 0, "source": "web", "text": f"正文{n}",
                 "text_hash": 1000 + n, "status": "keep"} for n in (1, 2, 3)]
    verdicts = [{"query_id": WRITTEN, "query": "问题900", "criterion": "searchable", "verdict": "yes", "score": 0.875,
                 "reason": "keep", "prompt_hash": "judgeprompt"}]
    candidate = {"passage_id": 1, "text_hash": 1001, "dense": 0.9, "dense_rank": 1, "bm25_rank": 4, "given": True,
                 "rerank": 2.5}
    commit("ingest", [], {"a": {"documents": documents, "groups": [labelled, other]}})
    commit("curate", ["ingest"], {"a": {"passages": passages}, "b": {"groups": [labelled, other]}})
    commit("synthesize", ["curate"], {"a": {"synthetic": [
        {"passage_id": 1, "text": "正文1", "text_hash": 1001, "model": "qwen", "prompt_hash": "writeprompt", "seed": 5,
         "attempts": 2, "queries": [{"query": "问题900"}], "status": "keep"}]}})
    commit("judge", ["synthesize"], {"a": {"judged": [{"passage_id": 1, "model": "qwen", "verdicts": verdicts}],
                                           "groups": [written]}})
    # As the stage writes them: settled owners, blocks of queries without status, and what was found.
    commit("mine", ["judge", "curate"], {
        "candidates-00000": {"candidates": [{**written, "candidates": [candidate]}]}, "owners-000": {"own": []},
        "queries-00000": {"block": [written]}, "search-00000-000": {}, "store-00000": {}, "summary": {}})
    commit("select", ["mine"], {"a": {"groups": [written, other]}})
    commit("pack", ["select"], {"p0": {"plan": [plan_row(OTHER, 0, [2, 3]), plan_row(WRITTEN, 1, [1, 3])]},
                                "p1": {"plan": [plan_row(WRITTEN, 0, [1]), plan_row(OTHER, 1, [2])]}})
    commit("refine", ["pack"], {"model": {}}, {"steps": 2})
    commit("pack_other", ["curate"], {"p0": {"plan": [plan_row(OTHER, 0, [2]), plan_row(OTHER, 1, [2, 3])]}})
    return made


def traced(artifacts: Sequence[Artifact], passage_id: int) -> Found:
    """As in a workspace whose own they all are."""
    return traces(artifacts, passage_id, [artifact.uri for artifact in artifacts])


def test_rows_are_found_by_a_column_and_by_a_leaf_of_lists(artifacts: list[Artifact]) -> None:
    curate = artifacts[1]
    assert [r.values["passage_id"] for r in rows_with(curate, "passages", "passage_id", [1, 3, 77])] == [1, 3]
    found = rows_with(curate, "groups", "positives.list.element.text_hash", [1001], ["query_id"])
    assert list(found) == [Row("curate", "b", {"query_id": LABELLED})]
    assert not list(rows_with(curate, "groups", "negatives.list.element.text_hash", [1001]))
    assert not list(rows_with(curate, "plan", "query_id", [OTHER])) and not list(rows_with(curate, "passages", "x", []))


def test_steps_count_through_the_files_of_a_plan(artifacts: list[Artifact]) -> None:
    plan = next(a for a in artifacts if a.manifest["stage"] == "pack")
    assert steps_of(plan, list(rows_with(plan, "plan", "query_id", [WRITTEN]))) == [2, 3]


def test_a_written_query_s_story_goes_from_the_raw_document_to_the_steps(artifacts: list[Artifact]) -> None:
    told = "\n".join(story(artifacts, WRITTEN))
    assert told.startswith("query 900 “问题900”")
    wanted = [
        "file 1.jsonl, position 7, licence mit", "passage 1, 0 characters into it, status keep (version 3): “正文1”",
        "written by qwen, prompt writeprompt, seed 5, 2 attempts: 1 queries",
        "judge        keep, P(yes) 0.875 by qwen, criterion searchable, prompt judgeprompt",
        "its own passage at dense rank 1, bm25 rank 4; 1 scored by the reranker",
        "select       source synthetic-web, status keep", "positive 1 score 2.500: “正文1”", "negative 3: “正文3”",
        "epoch 0 batch 1 row 0, epoch 0 batch 0 row 0", "refine       step 2 of 2",
    ]  # fmt: skip
    places = [told.find(line) for line in wanted]
    assert -1 not in places and told.count("source synthetic-web, status keep") == 2  # judge's and select's


def test_a_labelled_group_names_its_file_and_what_did_not_reach_it(artifacts: list[Artifact]) -> None:
    told = "\n".join(story(artifacts, LABELLED))
    assert "source mtp, file pairs.jsonl, position 44, status keep" in told and "written by" not in told
    with pytest.raises(InputError, match="query 5: no committed artifact has this group"):
        list(story(artifacts, 5))


def test_a_group_without_lineage_has_a_story_too(tmp_path: Path) -> None:
    draft = Draft(str(tmp_path / "select"), "s" * 12, {"stage": "select", "inputs": {}}, print)
    with draft.attempt("a") as attempt:
        rows = [{**group(OTHER, 2, 3, {}, "mtp"), "lineage": None}]
        attempt.write("groups", [pa.Table.from_pylist(rows, GROUPS)], GROUPS)
    assert list(story([draft.close()], OTHER))[0] == f"query {OTHER} “问题{OTHER}”"


def test_everything_that_holds_or_descends_from_a_passage_is_traced(artifacts: list[Artifact]) -> None:
    hashes, raw, made, *_ = traced(artifacts, 1)
    assert hashes == {1001}
    assert raw == ["ingest: source web, file 1.jsonl, position 7",
                   "ingest: source mtp, file pairs.jsonl, position 44 (a labelled group)"]
    named = {trace.artifact.manifest["stage"]: trace.what for trace in made}
    assert named == {
        "curate": "1 in passages, 1 in groups", "synthesize": "1 in synthetic", "judge": "1 in groups, 1 in judged",
        "mine": "1 in candidates", "select": "1 in groups", "pack": "2 in plan", "refine": "made from these",
        "pack_other": "made from these",
    }  # fmt: skip
    with pytest.raises(InputError, match="passage 12345"):
        traced(artifacts, 12345)


def test_what_was_made_from_another_workspace_s_artifact_descends_too(
    artifacts: list[Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run leaves it whose config named a plan by its path."""
    plan, here = next(a for a in artifacts if a.manifest["stage"] == "pack"), tmp_path / "here"
    given = {plan.uri: {"uri": plan.uri, "fingerprint": plan.fingerprint},
             "gone": {"uri": f"{tmp_path}/gone", "fingerprint": "gone"}}
    draft = Draft(str(here / "finetune"), "apart", {"stage": "finetune", "version": 1, "inputs": given}, print)
    with draft.attempt("a") as attempt:
        attempt.count(facts={"steps": 3})
    apart = draft.close()
    assert inputs_of(apart) == {plan.fingerprint, "gone"}
    found = every_artifact(str(here)).artifacts
    stages = [artifact.manifest["stage"] for artifact in found]
    assert stages[-1] == "finetune" and stages.index("pack") > stages.index("select") and "refine" not in stages
    assert "finetune     steps 2, 3 of 3" in "\n".join(story(found, WRITTEN))
    assert [trace.artifact.uri for trace in traced(found, 1).made][-1] == apart.uri
    # This config has no curate that could forget, and needs none; where all stands in its own workspace it does.
    config = tmp_path / "recipe.yaml"
    config.write_text(f"name: apart\nworkspace: {here}\n")
    apply = ["1", "--apply", "--config", str(config)]
    assert forget_job([*apply, "--workspace", str(tmp_path)]) == 2
    assert "the config names no file of forgotten passages" in capsys.readouterr().err and Path(plan.uri).exists()
    assert forget_job(apply) == 0
    told = capsys.readouterr().out
    assert f"in another workspace        {plan.uri}: 2 in plan\n" in told and "removed 1 artifact," in told
    assert "what the recipe takes from elsewhere may hold it still" in told
    assert not Path(apart.uri).exists() and all(Path(a.uri).exists() for a in artifacts)
    assert f"gone, not searched          {tmp_path}/gone\n" in told
    # Taken as it is by this one's ingest, it is raw text of this one no longer.
    taken = {"uri": artifacts[1].uri, "fingerprint": artifacts[1].fingerprint}
    commit_empty(here / "taking", {"curate": taken}, {"documents": DOCUMENTS})
    assert forget_job(apply) == 0 and not (here / "taking").exists()
    assert forget_job(apply) == 2  # nothing of this workspace leads there any more
    # So would raw text of its own.
    rows = [group(LABELLED, 1, 2, {"file": "pairs.jsonl", "position": 44}, "mtp")]
    draft = Draft(str(here / "ingest"), "raw", {"stage": "ingest", "inputs": {}}, print)
    with draft.attempt("a") as attempt:
        attempt.write("documents", [DOCUMENTS.empty_table()], DOCUMENTS)
        attempt.write("groups", [pa.Table.from_pylist(rows, GROUPS)], GROUPS)
    raw = draft.close()
    commit_empty(here / "train", {"ingest": {"uri": raw.uri, "fingerprint": raw.fingerprint}, "curate": taken})
    assert forget_job(apply) == 2 and (here / "train").exists()
    shutil.rmtree(here / "ingest")
    # A curate of its own would take the text again if it were not told to forget it.
    commit_empty(here / "curate", {"curate": taken}, {"passages": PASSAGES})
    capsys.readouterr()
    assert forget_job(apply) == 2 and "names no file of forgotten passages" in capsys.readouterr().err
    assert (here / "curate").exists()
    # What has the passage's id elsewhere may be another text: ids are those of a source, a file and a position.
    rows = [{"passage_id": 1, "document_id": 10, "text": "另一", "text_hash": 77, "status": "keep"}]
    draft = Draft(str(here / "curate-2"), "own", {"stage": "curate", "inputs": {}}, print)
    with draft.attempt("a") as attempt:
        attempt.write("passages", [pa.Table.from_pylist(rows, PASSAGES)], PASSAGES)
    own = draft.close()
    found = traces(every_artifact(str(here)).artifacts, 1, directories(str(here)))
    assert (found.hashes, [t.artifact.uri for t in found.made], found.elsewhere) == ({77}, [own.uri], [])


def test_a_text_that_only_groups_hold_here_is_known_whole_where_it_comes_from(
    artifacts: list[Artifact], tmp_path: Path
) -> None:
    """Groups of a judge hold it cut for the LLM; answers are about the whole."""
    rows = [group(WRITTEN, 1, 3, {"passage_id": 1}, "synthetic-web")]
    rows[0]["positives"][0]["text_hash"] = 55
    given = {"curate": {"uri": artifacts[1].uri, "fingerprint": artifacts[1].fingerprint}}
    draft = Draft(str(tmp_path / "here" / "judge"), "j", {"stage": "judge", "inputs": given}, print)
    with draft.attempt("a") as attempt:
        attempt.write("groups", [pa.Table.from_pylist(rows, GROUPS)], GROUPS)
    judge = draft.close()
    found = traces(every_artifact(f"{tmp_path}/here").artifacts, 1, [judge.uri])
    assert found.hashes == {1001, 55} and [t.artifact.uri for t in found.made] == [judge.uri]
    assert [t.artifact.uri for t in found.elsewhere] == [artifacts[1].uri]


def test_an_input_is_what_its_manifest_says_or_gone(tmp_path: Path) -> None:
    """Another artifact at its place is not it; a workspace that was moved has its own beside each other."""
    pack = commit_empty(tmp_path / "models" / "current", {}, name="pack")
    given = {"uri": pack.uri, "fingerprint": pack.fingerprint}
    train = commit_empty(tmp_path / "ws" / "train", {pack.uri: given})
    assert names(every_artifact(f"{tmp_path}/ws")) == ["models/current", "ws/train"]
    (tmp_path / "models").rename(tmp_path / "away")
    given = {"train": {"uri": train.uri, "fingerprint": train.fingerprint}}
    commit_empty(tmp_path / "models" / "current", given, name="merge")
    for text in (None, "[]", "{", '{"fingerprint": 1}'):
        if text is not None:
            (tmp_path / "models" / "current" / "manifest.json").write_text(text)
        found = every_artifact(f"{tmp_path}/ws")
        assert names(found) == ["ws/train"] and found.gone == {pack.fingerprint: pack.uri}
    (tmp_path / "away" / "current").rename(tmp_path / "ws" / "current")
    found = every_artifact(f"{tmp_path}/ws")
    assert names(found) == ["ws/current", "ws/train"] and not found.gone


def test_a_copy_of_an_artifact_with_its_fingerprint_is_followed_to_its_source(tmp_path: Path) -> None:
    """As init makes one of another workspace's model: the fingerprint is that of the content."""
    last = commit_empty(tmp_path / "a" / "finetune", {})
    for workspace in "bc":
        given = {last.uri: {"uri": last.uri, "fingerprint": last.fingerprint}}
        last = commit_empty(tmp_path / workspace / "init-f", given, name="init")
    assert last.fingerprint == inputs_of(last).pop() == "init-print"
    found = every_artifact(f"{tmp_path}/c")
    assert names(found) == ["a/finetune", "b/init-f", "c/init-f"] and not found.gone


def test_own_artifacts_keep_their_uris_however_inputs_spell_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = commit_empty(tmp_path / "a" / "pack", {})
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for number, spelled in enumerate(("link/pack", f"file://{tmp_path}/a/pack", "a/../a/pack", f"{tmp_path}/a/pack/")):
        commit_empty(tmp_path / "a" / f"train-{number}", {"x": {"uri": spelled, "fingerprint": pack.fingerprint}})
    monkeypatch.chdir(tmp_path)
    for workspace in (f"{tmp_path}/a", "a/", "link", f"file://{tmp_path}/a"):
        found = every_artifact(workspace)
        assert sorted(a.uri for a in found.artifacts) == directories(workspace) and len(found.artifacts) == 5
        assert found.artifacts[0].fingerprint == pack.fingerprint and not found.gone
    # Two that were made from each other, as no run makes them, end too.
    commit_empty(tmp_path / "b" / "x", {"y": {"uri": f"{tmp_path}/b/y", "fingerprint": "y-print"}})
    commit_empty(tmp_path / "b" / "y", {"x": {"uri": f"{tmp_path}/b/x", "fingerprint": "x-print"}})
    assert names(every_artifact("b")) == ["b/y", "b/x"]


def test_a_chain_is_followed_however_long(tmp_path: Path) -> None:
    for number in range(1200):
        given = {"last": {"uri": f"{tmp_path}/{number - 1}", "fingerprint": str(number - 1)}} if number else {}
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "manifest.json").write_text(json.dumps(
            {"stage": "s", "partitions": [], "fingerprint": str(number), "inputs": given}))
    found = ancestry([Artifact(f"{tmp_path}/1199")])
    assert [artifact.fingerprint for artifact in found.artifacts] == [str(number) for number in range(1200)]


def names(found: Ancestry) -> list[str]:
    return ["/".join(artifact.uri.rsplit("/", 2)[-2:]) for artifact in found.artifacts]


def commit_empty(place: Path, inputs: Mapping[str, Any], tables: Mapping[str, pa.Schema] | None = None,
                 name: str | None = None) -> Artifact:
    name = name or place.name
    draft = Draft(str(place), f"{name}-print", {"stage": name, "version": 1, "inputs": inputs}, print)
    with draft.attempt("a") as attempt:
        for table, schema in (tables or {}).items():
            attempt.write(table, [schema.empty_table()], schema)
    return draft.close()


def test_removing_leaves_nothing_but_the_raw_data_and_a_note_to_forget(artifacts: list[Artifact],
                                                                        tmp_path: Path) -> None:
    found = traced(artifacts, 1)
    forgotten, pages = tmp_path / "forgotten.txt", [str(tmp_path / "report.html"), str(tmp_path / "none.html")]
    Path(pages[0]).write_text("a sample")
    with AnswerStore(str(tmp_path / "answers")) as store:
        for number in range(4):
            store.put(bytes([number]) * 16, [f"答案{number}", "stop", 1, 1, 0, None, 1000 + number % 2])
    assert remove(found, 1, str(forgotten), [str(tmp_path / "answers"), str(tmp_path / "none")], pages) == 2
    with AnswerStore(str(tmp_path / "answers")) as store:
        assert [store.get(bytes([n]) * 16) is None for n in range(4)] == [False, True, False, True]
    assert forgotten.read_text() == "1 1001\n" and not Path(pages[0]).exists()
    assert [a.manifest["stage"] for a in artifacts if Path(a.uri).exists()] == ["ingest"]
    remove(found._replace(made=[]), 1, str(forgotten), (), pages)
    assert forgotten.read_text() == "1 1001\n"


def test_answers_are_found_by_the_text_that_they_are_about(tmp_path: Path) -> None:
    """Whatever passage it was asked about with: a twin, a labelled group's, one of before the raw files changed. The
    text as it was cut for the LLM counts too.
    """
    rows = [{"passage_id": number, "document_id": number, "text": "甲", "text_hash": 77, "status": status}
            for number, status in ((8, "keep"), (9, "duplicate"))]  # fmt: skip
    draft = Draft(str(tmp_path / "curate"), "c" * 12, {"stage": "curate", "inputs": {}}, print)
    with draft.attempt("a") as attempt:
        attempt.write("passages", [pa.Table.from_pylist(rows, PASSAGES)], PASSAGES)
        written = [{"passage_id": number, "text_hash": 100 + number} for number in (7, 8)]
        attempt.write("synthetic", [pa.Table.from_pylist(written, SYNTHETIC)], SYNTHETIC)
    found = traced([draft.close()], 9)
    with AnswerStore(str(tmp_path / "answers")) as store:
        for subject in (8, 9, 77, 107, 108):
            store.put(bytes([subject]) * 16, ["答案", "stop", 1, 1, 0, None, subject])
    assert remove(found, 9, str(tmp_path / "forgotten.txt"), [str(tmp_path / "answers")], ()) == 2
    with AnswerStore(str(tmp_path / "answers")) as store:
        assert [s for s in (8, 9, 77, 107, 108) if store.get(bytes([s]) * 16)] == [8, 9, 107]


def test_the_file_of_forgotten_passages_stays_readable(artifacts: list[Artifact], tmp_path: Path) -> None:
    """A line without its end, as editors leave it, is a line; what is none stops the removal before anything goes."""
    found, path = traced(artifacts, 1), tmp_path / "forgotten.txt"
    path.write_text("5 1005\n6 10")
    remove(found._replace(made=[]), 1, str(path), (), ())
    assert path.read_text() == "5 1005\n6 10\n1 1001\n" and read_forgotten(str(path)) == {1005, 10, 1001}
    path.write_text("5 1005\n6")
    with pytest.raises(InputError, match="forgotten.txt:2: it is no passage id and text hash"):
        remove(found, 1, str(path), (), ())
    assert all(Path(a.uri).is_dir() for a in artifacts)


def test_a_workspace_s_artifacts_come_inputs_first_and_without_a_recipe(artifacts: list[Artifact],
                                                                       tmp_path: Path) -> None:
    (tmp_path / "unfinished" / "partitions").mkdir(parents=True)
    (tmp_path / "report.html").write_text("no directory")
    found = every_artifact(f"{tmp_path}/").artifacts
    assert {a.fingerprint for a in found} == {a.fingerprint for a in artifacts} and len(found) == len(artifacts)
    place = {a.fingerprint: number for number, a in enumerate(found)}
    for artifact in found:
        assert all(place[made["fingerprint"]] < place[artifact.fingerprint]
                   for made in artifact.manifest["inputs"].values())
    first, second = traced(artifacts, 1), traced(found, 1)
    assert first[:2] == second[:2]
    assert {t.artifact.uri: t[1:] for t in first[2]} == {t.artifact.uri: t[1:] for t in second[2]}
    assert every_artifact(str(tmp_path / "nowhere")) == ([], {})


@pytest.mark.parametrize("kept", ["manifest.json", "parts"])
def test_a_killed_removal_is_found_again_and_ended(artifacts: list[Artifact], tmp_path: Path, kept: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    found = traced(every_artifact(str(tmp_path)).artifacts, 1)
    local, gone = fsspec.filesystem("file"), list[str]()
    delete = type(local).rm

    def dying(self: Any, path: str, **settings: Any) -> None:
        if "/select" in path and path.endswith(kept):
            raise KeyboardInterrupt
        gone.append(path)
        delete(self, path, **settings)

    monkeypatch.setattr(type(local), "rm", dying)
    with pytest.raises(KeyboardInterrupt):
        remove(found, 1, str(tmp_path / "forgotten.txt"), (), ())
    monkeypatch.undo()
    assert gone and (tmp_path / "select" / "parts").is_dir() and not (tmp_path / "pack").exists()
    assert finish_removals(directories(str(tmp_path))) == [str(tmp_path / "select")]
    assert finish_removals(directories(str(tmp_path))) == []
    found = traced(every_artifact(str(tmp_path)).artifacts, 1)
    assert [t.artifact.manifest["stage"] for t in found.made] == ["curate", "synthesize", "judge", "mine"]
    remove(found, 1, str(tmp_path / "forgotten.txt"), (), ())
    assert [a.manifest["stage"] for a in every_artifact(str(tmp_path)).artifacts] == ["ingest"]
    assert (tmp_path / "forgotten.txt").read_text() == "1 1001\n"


def test_a_passage_that_only_groups_hold_is_forgotten_by_its_text(artifacts: list[Artifact], tmp_path: Path) -> None:
    rows = [{**group(903, 44, 2, {"file": "pairs.jsonl", "position": 7}, "mtp")}]
    for stage in ("ingest", "curate"):
        given = {} if stage == "ingest" else {"ingest": {"uri": "", "fingerprint": "ingest-other"}}
        draft = Draft(str(tmp_path / f"{stage}-other"), f"{stage}-other", {"stage": stage, "inputs": given}, print)
        with draft.attempt("a") as attempt:
            attempt.write("groups", [pa.Table.from_pylist(rows, GROUPS)], GROUPS)
            if stage == "ingest":
                attempt.write("documents", [DOCUMENTS.empty_table()], DOCUMENTS)
        draft.close()
    found = traced(every_artifact(str(tmp_path)).artifacts, 44)
    assert found.hashes == {1044}
    assert found.raw == ["ingest: source mtp, file pairs.jsonl, position 7 (a labelled group)"]
    assert [(t.artifact.fingerprint, t.what) for t in found.made] == [("curate-other", "1 in groups")]
    remove(found, 44, str(tmp_path / "forgotten.txt"), (), ())
    assert (tmp_path / "forgotten.txt").read_text() == "44 1044\n"
    assert Path(artifacts[1].uri).exists() and not (tmp_path / "curate-other").exists()
    # What is left of it afterwards, a row without its text, is no trace.
    forgotten = [{"passage_id": 1, "document_id": 10, "text": "", "text_hash": 1001, "status": "forgotten"}]
    draft = Draft(str(tmp_path / "curate-new"), "curate-new", {"stage": "curate", "inputs": {}}, print)
    with draft.attempt("a") as attempt:
        attempt.write("passages", [pa.Table.from_pylist(forgotten, PASSAGES)], PASSAGES)
    assert traced([draft.close()], 1) == ({1001}, [], [], [], {1001})


def test_a_hit_in_any_row_group_is_found_among_many(tmp_path: Path) -> None:
    draft = Draft(str(tmp_path / "many"), "f", {"stage": "s", "inputs": {}}, print)
    rng = np.random.default_rng(0)
    lists = [[int(v) for v in rng.integers(0, 50, rng.integers(0, 4))] for _ in range(300)]
    rows = [{**group(n, 1, 2, {}, "s"), "negatives": [passage(v) for v in held]} for n, held in enumerate(lists)]
    with draft.attempt("a") as attempt:
        attempt.write("groups", [pa.Table.from_pylist(rows[i:i + 70], GROUPS) for i in range(0, 300, 70)], GROUPS)
    found = rows_with(draft.close(), "groups", "negatives.list.element.text_hash", {1007, 1013}, ["query_id"])
    assert [r.values["query_id"] for r in found] == [n for n, held in enumerate(lists) if {7, 13} & set(held)]


def test_the_job_searches_the_whole_workspace_not_what_the_config_binds_now(
    artifacts: list[Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # None of these artifacts is bound by the sample's config: as after `forgotten` changed curate's fingerprint.
    source = Path(__file__).resolve().parents[2] / "jobs/configs/sample/recipe.yaml"
    text, notes = source.read_text(encoding="utf-8"), tmp_path / "forgotten.txt"
    assert text.count("\ncurate:\n") == 1 and "forgotten:" not in text
    config = tmp_path / "recipe.yaml"
    config.write_text(text.replace("\ncurate:\n", f"\ncurate:\n  forgotten: {notes}\n"), encoding="utf-8")
    (tmp_path / "judge-half" / "parts" / "a-1").mkdir(parents=True)
    # Answers that a stage stored elsewhere, by a flag of its job that no config holds.
    manifest = Path(artifacts[2].uri) / "manifest.json"
    elsewhere = {"config": {"execution": {"answers": str(tmp_path / "fast")}}}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | elsewhere))
    with AnswerStore(str(tmp_path / "fast")) as store:
        store.put(b"a" * 16, ["x", "stop", 1, 1, 0, None, 1001])
    (tmp_path / "fast" / "server.log").write_text("somebody else's")
    common = ["--config", str(config), "--workspace", str(tmp_path)]
    assert forget_job(["1", *common]) == 0
    told = capsys.readouterr().out
    assert "removes 8 artifacts" in told and f"unfinished, not searched    {tmp_path}/judge-half\n" in told
    assert all(Path(a.uri).exists() for a in artifacts)
    assert forget_job(["1", "--apply", *common]) == 0
    assert "removed 8 artifacts, 1 stored answers" in capsys.readouterr().out
    assert (tmp_path / "fast" / "server.log").read_text() == "somebody else's"
    assert [a.manifest["stage"] for a in every_artifact(str(tmp_path)).artifacts] == ["ingest"]
    assert notes.read_text() == "1 1001\n"
    # A second passage before the rebuild: labelled ones stand in ingest's groups still, others need curate first.
    assert forget_job(["3", "--apply", *common]) == 0 and notes.read_text() == "1 1001\n3 1003\n"
    assert forget_job(["7", "--apply", *common]) == 2 and "run the recipe up to curate first" in capsys.readouterr().err
