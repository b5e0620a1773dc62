"""Ray as users use it: jobs submitted in every documented form, watched through the dashboard's HTTP API."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from .conftest import ROOT, Cluster, environment

pytestmark = pytest.mark.integration
CONFIG = "jobs/configs/micro/recipe.yaml"
METADATA = {"stage": "finetune", "config": "micro"}


@pytest.fixture(scope="module")
def workspace(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that finetuning the untrained model needs, made by two jobs on the cluster: a recipe and a stage."""
    folder = str(tmp_path_factory.mktemp("workspace"))
    for entrypoint in (["jobs/recipe.py", "--to", "init"], ["jobs/pack.py", "--stage", "pack_finetune"]):
        done = submit(cluster, [], "python", *entrypoint, "--config", CONFIG, "--workspace", folder)
        assert done.returncode == 0, done.stdout[-3000:]
    return folder


def submit(cluster: Cluster, options: list[str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    return cluster.run("ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", *options, "--",
                       *entrypoint)


def finetune(workspace: str) -> list[str]:
    """Arguments of a short run: eight steps are enough to write a model."""
    return ["--config", CONFIG, "--workspace", workspace, "--model", "init", "--max-steps", "8"]


def submission_id(output: str) -> str:
    return re.search(r"raysubmit_\w+", output).group()


def submission_ids(output: str) -> list[str]:
    """The jobs whose pages are named, by the driver and by themselves."""
    return list(dict.fromkeys(re.findall(r"/#/jobs/(raysubmit_\w+)", output)))


def manifest(output: str) -> dict:
    """Reads the manifest of the artifact that a job's first line names."""
    return json.loads(Path(re.search(r"finetune → (\S+)", output).group(1), "manifest.json").read_text())


def metrics_of(cluster: Cluster) -> dict[str, set[str]]:
    """Our metrics on the node's Prometheus page: {name: stages it is tagged with}."""
    with urllib.request.urlopen(f"{cluster.metrics}/metrics", timeout=30) as response:
        page = response.read().decode()
    found: dict[str, set[str]] = {}
    for name, stage in re.findall(r'^(ray_chuxin_\w+)\{.*?stage="(\w+)".*\}', page, flags=re.MULTILINE):
        found.setdefault(name, set()).add(stage)
    return found


def test_a_job_by_python_is_found_over_http(cluster: Cluster, workspace: str) -> None:
    options = ["--no-wait", "--metadata-json", json.dumps(METADATA)]
    started = submit(cluster, options, "python", "jobs/finetune.py", *finetune(workspace))
    assert started.returncode == 0, started.stdout + started.stderr
    job = submission_id(started.stdout)
    metrics: dict[str, set[str]] = {}
    limit = time.monotonic() + 240
    while (found := cluster.get(f"/api/jobs/{job}"))["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < limit, f"{found['status']}: {found['message']}"
        metrics |= metrics_of(cluster)
        time.sleep(1)
    log = cluster.get(f"/api/jobs/{job}/logs")["logs"]
    assert found["status"] == "SUCCEEDED", log
    assert found["metadata"] == METADATA and found["entrypoint"].startswith("python jobs/finetune.py")
    assert job in {each["submission_id"] for each in cluster.get("/api/jobs/")}

    page = f"{cluster.dashboard}/#/jobs/{job}"
    assert page in log, "the job prints its page"
    with urllib.request.urlopen(page, timeout=30) as response:
        assert response.status == 200 and b"<html" in response.read()

    limit = time.monotonic() + 20  # the job's last figures are on their way
    while "ray_chuxin_stage_rows_out" not in metrics and time.monotonic() < limit:
        metrics |= metrics_of(cluster)
        time.sleep(1)
    assert "finetune" in metrics["ray_chuxin_train_loss"], metrics
    assert "finetune" in metrics["ray_chuxin_stage_rows_out"], metrics
    assert manifest(log)["rows_out"] > 0


def test_a_job_by_its_file_alone_is_the_same_work(cluster: Cluster, workspace: str) -> None:
    done = submit(cluster, [], "jobs/finetune.py", *finetune(workspace), "--seed", "4")
    assert done.returncode == 0, done.stdout[-3000:]
    job = submission_id(done.stdout)
    assert "succeeded" in done.stdout and f"{cluster.dashboard}/#/jobs/{job}" in done.stdout
    assert manifest(done.stdout)["config"]["seed"] == 4
    assert cluster.get(f"/api/jobs/{job}")["entrypoint"].startswith("jobs/finetune.py")


def test_the_recipe_submits_each_stage_as_a_job_of_its_own(cluster: Cluster, workspace: str) -> None:
    """Once: a driver that is killed while it follows the job is no reason for another."""
    command = ["python", "jobs/recipe.py", "--config", CONFIG, "--workspace", workspace, "--to", "pretrain", "--submit",
               cluster.dashboard]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as driver:
        before = ""
        for line in driver.stdout:
            before += line
            if len(submission_ids(before)) == 2:  # pretrain, which takes longer than the next driver's start
                driver.kill()
    jobs = submission_ids(before)
    assert before.count("skipped, committed") == 4, "only pack_pretrain and pretrain were left to run"
    done = cluster.run(*command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert submission_ids(done.stdout) == jobs[1:]
    found = {one["submission_id"]: one for one in cluster.get("/api/jobs/") if "recipe" in one["metadata"]}
    assert found.keys() == {*jobs} and {one["status"] for one in found.values()} == {"SUCCEEDED"}
    assert [found[job]["metadata"]["stage"] for job in jobs] == ["pack_pretrain", "pretrain"]


def test_tasks_and_training_runs_carry_the_stages_names(cluster: Cluster, workspace: str) -> None:
    tasks = cluster.get("/api/v0/tasks?limit=10000")["data"]["result"]["result"]
    names = " ".join({task["name"] for task in tasks})
    for stage in ("ingest", "curate", "init", "pack_pretrain", "pack_finetune"):
        assert stage in names, f"no task of {stage} in: {names}"
    runs = cluster.get("/api/train/v2/runs/v1")["train_runs"]
    assert {run["name"] for run in runs} == {"pretrain", "finetune"}
    workers = {w["actor_id"] for run in runs for attempt in run["attempts"] for w in attempt["workers"]}
    actors = {a["actor_id"] for a in cluster.get("/api/v0/actors?limit=10000")["data"]["result"]["result"]}
    assert workers and workers <= actors


def test_a_user_error_ends_a_submitted_job_with_its_line(cluster: Cluster, workspace: str) -> None:
    done = submit(cluster, [], "jobs/finetune.py", *finetune(workspace), "--seed", "5",
                  "--execution.num-workers", "64")
    assert done.returncode != 0
    assert "error: finetune.execution: it needs 64 CPUs and the cluster has 4" in done.stdout, done.stdout[-500:]
    found = cluster.get(f"/api/jobs/{submission_id(done.stdout)}")
    assert found["status"] == "FAILED" and found["driver_exit_code"] == 2


def test_what_is_uploaded_is_small(cluster: Cluster, workspace: str) -> None:
    uploads = [p for p in cluster.folder.glob("session_latest/runtime_resources/working_dir_files/*") if p.is_dir()]
    assert uploads
    for upload in uploads:
        assert {"jobs", "platform"} <= {p.name for p in upload.iterdir()}
        assert not {".venv", ".git", "runs", "tests", "data"} & {p.name for p in upload.iterdir()}
        files = [p for p in upload.rglob("*") if p.is_file() and "sample/models" not in str(p)]
        assert sum(p.stat().st_size for p in files) < 4_000_000  # the sample's models come to 15 MB at most
