"""pipeline.py over a draft that computes partitions here, one by one: the same rows after a kill, and the checks."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from chuxin.artifacts import Artifact, Attempt, Draft
from chuxin.corpus import pipeline
from chuxin.corpus.config import CurateConfig, DocumentSource, IngestConfig, IngestExecution, SplitConfig
from chuxin.errors import InputError
from chuxin.pairs.config import PairSource


class Killed(Exception):
    """Stands for a kill -9 between two partitions."""


class LocalDraft(Draft):
    """Computes partitions in this process; dies after `lives` of them."""

    lives = 10**9

    def map(self, work, fn, *, name, num_cpus=1, memory=None):
        self._expected |= set(work)
        for key in [k for k in work if k not in self.committed()]:
            self.lives -= 1
            attempt = Attempt(self.uri, key)
            fn(key, work[key], attempt)
            if self.lives < 0:
                raise Killed  # computed, not committed
            attempt.commit()


def _context(uri, inputs=(), lives=10**9):
    draft = LocalDraft(str(uri), "fingerprint", {}, print)
    draft.lives = lives
    return SimpleNamespace(name="stage", draft=draft, inputs=dict(inputs), resolve=str, log=print)


@pytest.fixture
def world(tmp_path: Path):
    rng = random.Random(0)

    def sentence():
        season, hour = rng.choice("春夏秋冬"), rng.choice("早午晚")
        return f"第{rng.randrange(10**4)}号渔船在{season}天{hour}上回到第{rng.randrange(50)}号码头。"

    texts = ["".join(sentence() for _ in range(rng.randrange(1, 9))) for _ in range(300)]
    texts += rng.sample(texts, 30)
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    lines[17] = "{broken"
    (tmp_path / "docs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pairs = [{"query": f"第{i % 80}号渔船何时回来", "pos": [sentence()], "neg": [sentence()]} for i in range(100)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    (tmp_path / "bench").mkdir()
    corpus = [{"id": "a", "text": texts[3]}, {"id": "b", "text": texts[4]}, {"id": "c", "text": pairs[5]["pos"][0]}]
    (tmp_path / "bench/corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    queries = [{"id": "q", "text": "第7号渔船何时回来？"}, {"id": "r", "text": "无关"}]
    (tmp_path / "bench/queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (tmp_path / "bench/qrels.tsv").write_text("q\ta\t1\nr\tc\t1\n")
    return SimpleNamespace(
        path=tmp_path,
        ingest=IngestConfig((DocumentSource("docs", "jsonl", str(tmp_path / "docs.jsonl")),),
                            (PairSource("pairs", "mtp", str(tmp_path / "pairs.jsonl")),), partition_bytes=9000),
        curate=CurateConfig("ingest", SplitConfig(120, 20), (str(tmp_path / "bench"),), buckets=3,
                            partition_bytes=20000),
    )


def _run(world: SimpleNamespace, name):
    ctx = _context(world.path / name / "ingest")
    pipeline.ingest(ctx, world.ingest)
    raw = ctx.draft.close()
    ctx = _context(world.path / name / "curate", {"ingest": raw})
    pipeline.curate(ctx, world.curate)
    return raw, ctx.draft.close()


def _content(artifact, table):
    return artifact.read(table).sort_by([(artifact.read(table).column_names[0], "ascending")]).to_pylist()


def test_ingest_and_curate(world: SimpleNamespace) -> None:
    raw, curated = _run(world, "a")
    assert (raw.manifest["rows_in"], raw.manifest["rows_out"]) == (430, 429)
    assert len(raw.parts("documents")) > 4
    assert raw.read("rejects")["line"].to_pylist() == [18]
    assert raw.manifest["facts"]["by_source"] == {
        "docs": {"rows_in": 330, "rows_out": 329, "not_json": 1}, "pairs": {"rows_in": 100, "rows_out": 100}}
    assert raw.manifest["facts"]["first_reject"].endswith("docs.jsonl:18: not_json")
    manifest = curated.manifest
    passages, groups = curated.read("passages"), curated.read("groups")
    assert manifest["rows_in"] == 429
    assert manifest["rows_out"] == sum(t["status"].to_pylist().count("keep") for t in (passages, groups))
    kept = manifest["rows_out"] + sum(manifest["drops"].values())
    assert kept == passages.num_rows + groups.num_rows
    facts = manifest["facts"]
    assert facts["contaminated_query"] == {"bench": 2}
    assert groups["status"].to_pylist().count("contaminated_query") == 2
    assert facts["contaminated_positive"] == {"bench": 1} and facts["gold_documents"]["bench"] >= 1
    assert set(facts["by_source"]) == {"passages", "groups"}
    assert sum(facts["by_source"]["passages"]["docs"].values()) == passages.num_rows
    holders = {r["document_id"] for r in passages.to_pylist() if r["holds_gold"]}
    assert len(holders) == facts["gold_documents"]["bench"]
    assert sum(manifest["histograms"]["passage_chars"]) == passages["status"].to_pylist().count("keep")


def test_killed_at_any_partition_and_rerun_gives_the_same_rows(world: SimpleNamespace) -> None:
    raw, curated = _run(world, "whole")
    for lives in (0, 4):
        uri = world.path / f"killed{lives}"
        with pytest.raises(Killed):
            pipeline.ingest(_context(uri / "ingest", lives=lives), world.ingest)
        ctx = _context(uri / "ingest")
        pipeline.ingest(ctx, world.ingest)
        again = ctx.draft.close()
        for step in (lives, lives):
            with pytest.raises(Killed):
                pipeline.curate(_context(uri / "curate", {"ingest": again}, lives=step), world.curate)
        ctx = _context(uri / "curate", {"ingest": again})
        pipeline.curate(ctx, world.curate)
        rerun = ctx.draft.close()
        assert _content(again, "documents") == _content(raw, "documents")
        for table in ("passages", "groups"):
            assert _content(rerun, table) == _content(curated, table)
        assert rerun.manifest["drops"] == curated.manifest["drops"]
        assert rerun.manifest["facts"] == curated.manifest["facts"]


def test_the_share_of_malformed_rows_is_judged_over_all_files_and_can_be_raised(world: SimpleNamespace) -> None:
    text = (world.path / "docs.jsonl").read_text(encoding="utf-8").split("\n")
    text[40:50] = ["oops"] * 10
    (world.path / "docs.jsonl").write_text("\n".join(text), encoding="utf-8")
    ctx = _context(world.path / "x")
    with pytest.raises(InputError, match=r"11 of 430 rows are malformed \(1.00% may be\)") as error:
        pipeline.ingest(ctx, world.ingest)
    assert error.value.where.endswith("docs.jsonl:18")
    sources = (world.ingest.documents, world.ingest.pairs, 9000)
    pipeline.ingest(_context(world.path / "x"), IngestConfig(*sources, IngestExecution(max_malformed_share=0.05)))


def test_a_lost_passage_is_noticed(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, _ = _run(world, "a")

    def careless(*arguments):
        pipeline_map(*arguments[:-1], attempt := arguments[-1])
        first = next(iter(attempt.tables))
        attempt.tables[first]["rows"] += 1

    pipeline_map = pipeline.map_documents
    monkeypatch.setattr(pipeline, "map_documents", careless)
    with pytest.raises(RuntimeError, match="map and the reduce step differ"):
        pipeline.curate(_context(world.path / "y", {"ingest": raw}), world.curate)


def test_curate_takes_the_directory_of_an_artifact(world: SimpleNamespace) -> None:
    raw, _ = _run(world, "a")
    config = CurateConfig(raw.uri, SplitConfig(120, 20), buckets=1)
    ctx = _context(world.path / "z")
    pipeline.curate(ctx, config)
    assert isinstance(ctx.draft.close(), Artifact)


def test_missing_paths_name_themselves(world: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="no such file or folder") as error:
        pipeline.ingest(_context(world.path / "x"), IngestConfig((DocumentSource("d", "jsonl", "/absent/x.jsonl"),)))
    assert error.value.where == "/absent/x.jsonl"


@pytest.mark.parametrize(("sources", "problem"), [
    ((), "at least one source"), (("a/b",), "may hold only"), (("a", "a"), "two sources"),
])
def test_source_names_are_checked(sources: tuple, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        IngestConfig(tuple(DocumentSource(name, "jsonl", "x") for name in sources))


def test_the_file_of_forgotten_passages_is_read_and_bad_lines_are_named(tmp_path: Path) -> None:
    file = tmp_path / "forgotten.txt"
    file.write_text("")
    assert pipeline.read_forgotten(str(file)) == frozenset()
    file.write_text("1 77\n2 78\n")
    assert pipeline.read_forgotten(str(file)) == {77, 78}
    file.write_text("1 77\n2\n")
    with pytest.raises(InputError, match=r"forgotten.txt:2: it is no passage id and text hash"):
        pipeline.read_forgotten(str(file))
    with pytest.raises(InputError, match="there is no such file of forgotten passages"):
        pipeline.read_forgotten(str(tmp_path / "none"))
