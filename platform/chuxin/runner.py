"""Runner: which stages a recipe has, what each is (its fingerprint), what is committed, and running the rest.

A fingerprint is the hash of *what* a stage computes: its code's version, its config without the `execution` section,
and its inputs' fingerprints. It names the artifact's directory, so unchanged work is found and skipped, and an
upstream change re-runs only what depends on it. Leaves out: what stages compute (their pipelines) and the command
line (jobs/).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import platform
import posixpath
import shlex
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
import yaml

from chuxin import artifacts, files, lease
from chuxin.artifacts import Artifact, Draft
from chuxin.config import item_hint, refs, to_plain
from chuxin.errors import InputError
from chuxin.identity import Identities

_VERSIONS = ("chuxin", "ray", "torch", "transformers", "deepspeed", "pyarrow")


class Stage(NamedTuple):
    """A stage of the recipe: `name` is its section and artifact, `verb` its job, `run` is "module:function"."""

    name: str
    verb: str
    run: str
    version: int


class Bound(NamedTuple):
    """A stage with its config and everything that identifies its result."""

    stage: Stage
    config: Any
    fingerprint: str
    uri: str
    inputs: dict[str, str]
    """Stage names of its inputs → their artifact URIs."""
    named: dict[str, tuple[str, ...]]
    """References by path, URI or pattern to files of further artifacts → those artifacts' URIs."""

    @property
    def committed(self) -> bool:
        """True once the artifact's manifest is written."""
        return files.read_json(f"{self.uri}/manifest.json") is not None


class Context:
    """What a stage's run function gets: its draft, its inputs, the resolver of references, a line to the terminal.

    `following` is the config of the recipe's next stage that is to run, if any: what it needs too may stay. `named`
    holds the artifacts that other references than those to stages lead into.
    """

    def __init__(
        self, name: str, draft: Draft, inputs: dict[str, Artifact], log: Callable[[str], None], following: Any = None,
        named: Mapping[str, Sequence[Artifact]] | None = None,
    ) -> None:
        self._named = named or {}
        self.name, self.draft, self.inputs, self.log, self.following = name, draft, inputs, log, following

    def origins(self, ref: str) -> Sequence[Artifact]:
        """Returns the committed artifacts that a reference leads into; none for data and models from outside."""
        stage = ref.partition(":")[0]
        return [self.inputs[stage]] if stage in self.inputs else self._named.get(ref, [])

    def resolve(self, ref: str) -> str:
        """Turns a reference into a path or URI: "sample:raw/x" → inside the artifact; a stage's name → its model."""
        stage, _, rest = ref.partition(":")
        if stage not in self.inputs:
            return ref
        name, _, tail = (rest or "model").partition("/")
        path = self.inputs[stage].path(name)
        return f"{path}/{tail}" if tail else path


def bind(recipe: Any, stages: tuple[Stage, ...]) -> list[Bound]:
    """Binds every stage whose section the recipe has, in order.

    Raises:
        InputError: A reference names no earlier stage, no path and no model.
    """
    bound: dict[str, Bound] = {}
    known = Identities(recipe.workspace)
    for stage in stages:
        config = getattr(recipe, stage.name)
        if config is None:
            continue
        used: dict[str, str] = {}
        named: dict[str, tuple[str, ...]] = {}
        identities: dict[str, str] = {}
        for ref, is_model in refs(config):
            head = ref.partition(":")[0]
            if head in bound:
                used[head] = bound[head].uri
                identities[ref] = f"{bound[head].fingerprint}{ref[len(head):]}"
            else:
                identities[ref], around = known.identify(ref, is_model, f"{stage.name} in the config", list(bound))
                if around:
                    named[ref] = around
        content = {"run": stage.run, "version": stage.version, "config": _content(config, identities)}
        if hasattr(config, "package_files"):  # prompts, which no version of the stage's code stands for
            content["package_files"] = config.package_files()
        fingerprint = xxhash.xxh3_128_hexdigest(repr(content).encode())
        uri = f"{recipe.workspace.rstrip('/')}/{stage.name}-{fingerprint[:12]}"
        bound[stage.name] = Bound(stage, config, fingerprint, uri, used, named)
    known.remember()
    return list(bound.values())


def run_here(bound: Bound, recipe: Any, following: Bound | None = None) -> Artifact:
    """Runs one stage in this Ray session and commits it; committed work is returned as it is.

    `following` is the recipe's next stage that is to run, here or as a job of its own.

    Raises:
        InputError: An input is not committed, or the cluster has too few CPUs.
    """
    if bound.committed:
        artifact = Artifact(bound.uri)
        artifacts.clear(artifact)  # a driver killed between the manifest and this left what attempts wrote
        return artifact
    inputs = {}
    for name, uri in bound.inputs.items():
        if files.read_json(f"{uri}/manifest.json") is None:
            remedy = f"Run it first: python jobs/recipe.py --config <this config> --to {name}"
            raise InputError(bound.stage.name, f"its input `{name}` is not committed at {uri}", remedy)
        inputs[name] = Artifact(uri)
    named = {ref: [Artifact(uri) for uri in uris] for ref, uris in bound.named.items()}
    sources = inputs | {artifact.uri: artifact for around in named.values() for artifact in around}
    _require_resources(bound)
    started = time.time()
    describe = {
        "stage": bound.stage.name, "run": bound.stage.run, "version": bound.stage.version,
        "config": to_plain(bound.config), "recipe": to_plain(recipe),
        "inputs": {name: {"uri": a.uri, "fingerprint": a.fingerprint} for name, a in sources.items()},
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in _VERSIONS}},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
    }

    def log(message: str) -> None:
        print(f"    [{bound.stage.name} {clock(time.time() - started)}] {message}", flush=True)

    with lease.held(bound.uri, bound.stage.name) as seconds:
        context = Context(bound.stage.name, Draft(bound.uri, bound.fingerprint, describe, log), inputs, log,
                          following and following.config, named)
        module, _, function = bound.stage.run.partition(":")
        getattr(importlib.import_module(module), function)(context, bound.config)
        artifact = context.draft.close(seconds())
    _publish(bound.stage.name, artifact.manifest)
    return artifact


def run_submitted(bound: Bound, recipe: Any, address: str) -> Artifact:
    """Runs one stage as a Ray job of its own on the cluster at `address`, follows its log, and opens the result.

    The job reads the resolved recipe, overrides included, from the workspace, which all nodes must reach. One that an
    earlier driver submitted, and that still waits or runs, is followed instead.

    Raises:
        InputError: The job failed; its log holds the line.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    resolved = yaml.safe_dump(to_plain(recipe), allow_unicode=True, sort_keys=False)
    config_path = f"{recipe.workspace}/recipe-{xxhash.xxh3_64_hexdigest(resolved.encode())}.yaml"
    fs, path = files.filesystem(config_path)
    fs.makedirs(posixpath.dirname(path), exist_ok=True)
    fs.pipe_file(path, resolved.encode())
    client = JobSubmissionClient(address)
    command = ["python", f"jobs/{bound.stage.verb}.py", "--config", config_path, "--stage", bound.stage.name]
    living = (job for job in client.list_jobs() if not job.status.is_terminal())
    job = next((job.submission_id for job in living if (job.metadata or {}).get("artifact") == bound.uri), None)
    if job is None and bound.committed:  # by a job that has ended meanwhile
        return Artifact(bound.uri)
    job = job or client.submit_job(
        entrypoint=shlex.join(command), runtime_env={"working_dir": "."},
        metadata={"stage": bound.stage.name, "recipe": recipe.name, "config": config_path, "artifact": bound.uri},
    )
    print(f"  {address}/#/jobs/{job}", flush=True)
    shown = 0
    while True:
        status = client.get_job_status(job)
        log = client.get_job_logs(job)
        print(log[shown:], end="", flush=True)
        shown = len(log)
        if status.is_terminal():
            break
        time.sleep(1)
    if status != JobStatus.SUCCEEDED:
        raise InputError(f"job {job}", f"stage {bound.stage.name} ended as {status}", "Read its log above")
    return Artifact(bound.uri)


@contextlib.contextmanager
def session(num_cpus: int | None, dashboard: bool) -> Iterator[str]:
    """A Ray session: the cluster this process was submitted to, or a local one that ends with the block.

    Yields:
        The dashboard's page of this job, or "" without a dashboard.
    """
    # Ray 2.60 turns token authentication on by itself after a local init: never leave it to chance.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The dashboard lists training runs and their workers by name only where their state is tracked.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    # Threads that wait sleep: spinning, two of them took 26 s for a step of 1.8 s on two cores that others used too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Workers of a killed raylet end within a second, not ten, so a rerun after kill -9 does not race with them.
    os.environ.setdefault("RAY_raylet_death_check_interval_milliseconds", "1000")
    # Idle workers end after a second: kept for reuse, each held up to 1 GB that an earlier stage had allocated.
    os.environ.setdefault("RAY_num_workers_soft_limit", "0")
    import ray

    submitted = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    # A submitted job's working_dir is unpacked elsewhere on every node, so its path is relative to it.
    source_root = "platform" if submitted else str(Path(__file__).resolve().parents[1])
    environment = {"env_vars": {"PYTHONPATH": source_root, "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"]}}
    if submitted or "RAY_ADDRESS" in os.environ:
        given = ray.init(runtime_env=environment, logging_level="warning", log_to_driver=False)
    else:
        given = ray.init("local", num_cpus=num_cpus, include_dashboard=dashboard, dashboard_host="127.0.0.1",
                         runtime_env=environment, logging_level="warning", log_to_driver=False,
                         object_store_memory=256 * 2**20, configure_logging=True)
    _quiet()
    job = json.loads(submitted)["metadata"]["job_submission_id"] if submitted else \
        ray.get_runtime_context().get_job_id()
    page = given.address_info.get("webui_url") or ""
    try:
        yield f"http://{page}/#/jobs/{job}" if page else ""
    finally:
        ray.shutdown()


def _quiet() -> None:
    """Leaves the terminal to our own lines; Ray's logs stay in the session's log folder and on the dashboard."""
    import logging

    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.serve"):  # after ray.data's import, which configures its logger
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _content(value: Any, identities: Mapping[str, str], hint: Any = None) -> Any:
    """Plain data of a config for its fingerprint: `execution` left out, references replaced by what they name."""
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        return {f.name: _content(getattr(value, f.name), identities, hints[f.name])
                for f in dataclasses.fields(value) if f.name != "execution"}
    if isinstance(value, Mapping):
        return [(k, _content(v, identities, item_hint(hint))) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [_content(v, identities, item_hint(hint)) for v in value]
    return identities[value] if next(refs(value, hint), None) else value


def required_cpus(config: Any) -> float:
    """CPUs that a stage must be able to reserve at once, as its `execution` section states."""
    execution = getattr(config, "execution", None)
    stated = getattr(execution, "required_cpus", None)
    return float(stated()) if stated else float(getattr(execution, "num_cpus", 1))


def _require_resources(bound: Bound) -> None:
    """Refuses at once what the cluster could never schedule: Ray itself would wait for ever."""
    import ray

    execution = getattr(bound.config, "execution", None)
    workers = getattr(execution, "num_workers", getattr(execution, "num_replicas", 1))
    each = getattr(execution, "cpus_per_worker", getattr(execution, "num_cpus", 1))
    gpus = float(getattr(execution, "use_gpu", False) or getattr(execution, "num_gpus", 0))
    total, largest = ray.cluster_resources(), max(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"])
    remedy = "Lower its workers or what each takes, or raise execution.num_cpus (logical CPUs of a local run)"
    where = f"{bound.stage.name}.execution"
    if (need := required_cpus(bound.config)) > total.get("CPU", 0):
        raise InputError(where, f"it needs {need:g} CPUs and the cluster has {total.get('CPU', 0):g}", remedy)
    if each > largest:
        raise InputError(where, f"one worker needs {each:g} CPUs and the largest node has {largest:g}", remedy)
    if workers * gpus > total.get("GPU", 0):
        raise InputError(where, f"it needs {workers * gpus:g} GPUs and the cluster has {total.get('GPU', 0):g}",
                         "Lower its workers, or switch its GPU use off")


def _publish(stage: str, manifest: Mapping[str, Any]) -> None:
    from chuxin import telemetry

    telemetry.gauge("stage_rows_in", manifest["rows_in"], {"stage": stage}, "Rows a stage read")
    telemetry.gauge("stage_rows_out", manifest["rows_out"], {"stage": stage}, "Rows a stage wrote")
    for reason, number in manifest["drops"].items():
        telemetry.count("drops", number, {"stage": stage, "reason": reason}, "Rows dropped, by reason")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree"


def clock(seconds: float) -> str:
    """Formats seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def fail(error: BaseException) -> int:
    """Prints a user's error as one line and returns exit code 2; anything else is a defect and is raised again."""
    from chuxin.errors import find_input_error

    known = find_input_error(error)
    if known is None:
        raise error
    print(f"error: {known}", file=sys.stderr, flush=True)
    return 2
