"""The micro recipe as a user runs it: to the end, skipped the second time, and every mistake answered in one line."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from chuxin.ids import match_key

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "jobs/configs/micro/recipe.yaml"
STAGES = ["sample", "ingest", "curate", "init", "pack_pretrain", "pretrain", "pack_finetune", "finetune", "pack_refine",
          "refine", "reranker", "evaluate", "release", "serve"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True, timeout=420,
                          check=False, env={**os.environ, "COLUMNS": "200"})


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    workspace = tmp_path_factory.mktemp("micro")
    done = run("jobs/recipe.py", "--config", str(CONFIG), "--workspace", str(workspace))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return workspace, done.stdout


def manifest(workspace: Path, stage: str) -> dict:
    return json.loads(next(workspace.glob(f"{stage}-*/manifest.json")).read_text())


def test_every_stage_is_committed_with_its_counts(micro: tuple[Path, str]) -> None:
    for stage in STAGES:
        found = manifest(micro[0], stage)
        assert found["seconds"] > 0 and found["versions"]["torch"] and found["partitions"], stage
        assert found["rows_out"] > 0 or stage in ("init", "release", "serve"), stage


def test_planted_leaks_are_found_and_none_is_kept(micro: tuple[Path, str]) -> None:
    planted = json.loads(next(micro[0].glob("sample-*/parts/*/planted.json")).read_text())
    leaked = [leak["query"] for leak in planted["leaks"] if leak["form"].startswith("query")]
    facts = manifest(micro[0], "curate")["facts"]
    assert sum(facts["contaminated_query"].values()) >= len(leaked) > 0
    assert sum(facts["contaminated_positive"].values()) == planted["counts"]["gold_pair"]
    assert sum(facts["gold_documents"].values()) == planted["counts"]["gold_document"]
    kept = set()
    for path in micro[0].glob("curate-*/parts/reduce-groups-*/groups.parquet"):
        rows = pq.read_table(path, columns=["query", "status"]).to_pylist()
        kept |= {match_key(row["query"]) for row in rows if row["status"] == "keep"}
    assert kept and not kept & {match_key(query) for query in leaked}


def test_finetuning_helps_even_at_this_size(micro: tuple[Path, str]) -> None:
    results = json.loads(next(micro[0].glob("evaluate-*/parts/*/results.json")).read_text())
    for task in results["tasks"].values():
        scores = task["slices"]["all"]["scores"]
        # 99 against 76 and 79 when this was written; nDCG@10 moves less than its interval in so short a training.
        assert scores["finetuned"]["recall_at_100"]["mean"] > scores["pretrained"]["recall_at_100"]["mean"] + 0.05


def test_the_report_is_one_page_without_network(micro: tuple[Path, str]) -> None:
    page = (micro[0] / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "src=\"http" not in page and "href=\"http" not in page
    assert all(stage in page for stage in STAGES)
    assert "nDCG@10" in micro[1] and "report" in micro[1].splitlines()[-1]


def test_a_second_run_skips_everything(micro: tuple[Path, str]) -> None:
    done = run("jobs/recipe.py", "--config", str(CONFIG), "--workspace", str(micro[0]))
    assert done.returncode == 0 and done.stdout.count("skipped, committed") == len(STAGES)


def test_dry_run_shows_what_would_run_again(micro: tuple[Path, str]) -> None:
    done = run("jobs/recipe.py", "--config", str(CONFIG), "--workspace", str(micro[0]), "--dry-run",
               "--finetune.seed", "99")
    state = {line.split()[-2]: line.startswith("committed") for line in done.stdout.splitlines()}
    assert [stage for stage in STAGES if not state[stage]] == ["finetune", "refine", "reranker", "evaluate", "release",
                                                           "serve"]


def broken(tmp_path: Path, **changes: object) -> str:
    """Writes the micro config with values replaced; a key names its place as section__field."""
    config = yaml.safe_load(CONFIG.read_text())
    config["workspace"] = str(tmp_path / "ws")
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    target = tmp_path / "recipe.yaml"
    target.write_text(yaml.safe_dump(config, allow_unicode=True))
    return str(target)


def refused(*arguments: str) -> str:
    done = run(*arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return lines[0]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    source = [{"name": "a", "format": "jsonl", "path": "no/such/folder"}]
    assert "no/such/folder" in refused("jobs/ingest.py", "--config", broken(tmp_path, ingest__documents=source))


def test_an_unknown_key_is_named_with_its_line(tmp_path: Path) -> None:
    line = refused("jobs/finetune.py", "--config", broken(tmp_path, finetune__learning=1))
    assert "recipe.yaml:" in line and "unknown key `finetune.learning`" in line


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "./no/model" in refused("jobs/finetune.py", "--config", broken(tmp_path, finetune__model="./no/model"))


def test_an_input_that_was_not_run_is_named(tmp_path: Path) -> None:
    assert "--to" in refused("jobs/curate.py", "--config", broken(tmp_path))


def test_too_few_cpus_are_refused(micro: tuple[Path, str]) -> None:
    line = refused("jobs/finetune.py", "--config", str(CONFIG), "--workspace", str(micro[0]), "--seed", "33",
                   "--execution.num-workers", "64")
    assert "64" in line and "CPUs" in line


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps({"text": "一段正文。" * 40 + str(i)}) + "\n" for i in range(500)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    source = [{"name": "a", "format": "jsonl", "path": str(tmp_path / "cut.jsonl.gz")}]
    line = refused("jobs/ingest.py", "--config", broken(tmp_path, ingest__documents=source, ingest__pairs=[]))
    assert "cut.jsonl.gz:" in line


def test_too_many_malformed_lines_stop_the_job(tmp_path: Path) -> None:
    good = json.dumps({"text": "一段正文。" * 40}, ensure_ascii=False)
    lines = [good if i % 4 else "{not json" for i in range(100)]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = [{"name": "a", "format": "jsonl", "path": str(tmp_path / "bad.jsonl")}]
    line = refused("jobs/ingest.py", "--config", broken(tmp_path, ingest__documents=source, ingest__pairs=[]))
    assert "bad.jsonl:1" in line and "25" in line


def test_few_malformed_lines_are_counted_and_kept_aside(micro: tuple[Path, str]) -> None:
    assert sum(p["tables"].get("rejects", {}).get("rows", 0) for p in manifest(micro[0], "ingest")["partitions"]) > 0


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"content": "一段正文。"}) + "\n", encoding="utf-8")
    source = [{"name": "a", "format": "jsonl", "path": str(tmp_path / "a.jsonl")}]
    line = refused("jobs/ingest.py", "--config", broken(tmp_path, ingest__documents=source, ingest__pairs=[]))
    assert "a.jsonl" in line and "`text`" in line and "content" in line
