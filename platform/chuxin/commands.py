"""Command lines: what `python jobs/VERB.py` and `python jobs/recipe.py` take, print and return.

Exit codes: 0 done, 2 the user can put it right (one line says how), 1 a defect (a traceback says where).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from chuxin import lease, runner
from chuxin.artifacts import Artifact
from chuxin.config import load, override
from chuxin.errors import InputError
from chuxin.files import filesystem
from chuxin.recipe import STAGES, RecipeConfig, require_models_of_own
from chuxin.runner import Bound
from chuxin.synthesis.config import LLMExecution

T = TypeVar("T")
DEFAULT_CONFIG = "jobs/configs/sample/recipe.yaml"
REPORT = "report.html"
LLM_JOBS = ("synthesize", "judge")
"""The jobs whose stages all ask an LLM."""


def stage_job(verb: str, arguments: Sequence[str] | None = None) -> int:
    """Runs one stage of a recipe: the job behind jobs/VERB.py.

    Args:
        verb: The job's name; `--stage` chooses among the stages of that verb where the config has several.
        arguments: The command line; the process's own by default.
    """
    stages = [stage for stage in STAGES if stage.verb == verb]
    parser = _parser(f"jobs/{verb}.py", f"Run the recipe's stage {' or '.join(s.name for s in stages)}.")
    names = [stage.name for stage in stages]
    about = "section of the config (default: the one its `stage` names, or named like this job, or this job's first)"
    parser.add_argument("--stage", choices=names, help=about)
    if verb in LLM_JOBS:
        parser.add_argument("--budget", metavar="TOKENS|HOURSh", help="stop once this run has bought so many tokens, "
                            "such as 200000000, or taken so many GPU hours, such as 2.5h; the next run goes on")
    known, rest = parser.parse_known_args(arguments)
    try:
        recipe = load_recipe(known.config, known.workspace)
        name = known.stage or recipe.default_stage(verb)
        section = getattr(recipe, name) if name else None
        if section is None:
            raise InputError(known.config, f"it has no section `{name or '` or `'.join(names)}`", "Add the section")
        chosen = f" --stage {name}" if len(names) > 1 else ""
        section = _override(parser, known, section, rest, chosen)
        if verb in LLM_JOBS and known.budget is not None:
            section = dataclasses.replace(section, execution=section.execution.with_budget(known.budget))
        recipe = dataclasses.replace(recipe, **{name: section})
        every = _bind(recipe, known.config)
        bound = {b.stage.name: b for b in every}[name]
        with runner.session(recipe.execution.num_cpus, recipe.execution.dashboard) as page:
            print(f"{name} → {bound.uri}" + (f"\ndashboard {page}" if page else ""), flush=True)
            _run_one(bound, recipe, position="", following=_following(every).get(bound.uri))
    except Exception as error:
        return runner.fail(error)
    return 0


def serve_job(arguments: Sequence[str] | None = None) -> int:
    """Serves the release of a recipe, or any model directory, until SIGINT or SIGTERM."""
    parser = _parser("jobs/serve.py", "Serve a model on /v1/embeddings until interrupted.")
    parser.add_argument("--model", help="a model directory, instead of the recipe's release")
    parser.add_argument("--check", action="store_true", help="compare the endpoint's vectors with the release and end")
    known, rest = parser.parse_known_args(arguments)
    if known.check:
        left = list(sys.argv[1:] if arguments is None else arguments)
        left.remove("--check")
        return stage_job("serve", left)
    try:
        recipe = load_recipe(known.config, known.workspace)
        if recipe.serve is None:
            raise InputError(known.config, "it has no section `serve`", "Add the section")
        section = _override(parser, known, recipe.serve, rest)
        model = known.model or _released(recipe)
        with runner.session(recipe.execution.num_cpus, recipe.execution.dashboard) as page:
            print(f"dashboard {page}" if page else "no dashboard (execution.dashboard: false)", flush=True)
            from chuxin.serving.pipeline import run_forever

            run_forever(model, section)
    except Exception as error:
        return runner.fail(error)
    return 0


def _released(recipe: RecipeConfig) -> str:
    """Returns the model directory that the recipe's serve section names."""
    bound = {b.stage.name: b for b in runner.bind(recipe, STAGES)}
    ref = str(recipe.serve.model)
    return Artifact(bound[ref].uri).path("model") if ref in bound else ref


def recipe_job(arguments: Sequence[str] | None = None) -> int:
    """Runs the whole recipe in order, skipping what is committed, and writes report.html."""
    parser = _parser("jobs/recipe.py", "Run a recipe's stages in order; committed stages are skipped.")
    parser.add_argument("--to", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--dry-run", action="store_true", help="show what is committed and what would run")
    parser.add_argument("--submit", metavar="ADDRESS", help="run every stage as a job of its own on this cluster")
    known, rest = parser.parse_known_args(arguments)
    try:
        recipe = load_recipe(known.config, known.workspace)
        recipe = _override(parser, known, recipe, rest)
        chosen = _up_to(_bind(recipe, known.config), known.to)
        if known.dry_run:
            for bound in chosen:
                print(f"{'committed' if bound.committed else 'will run':10} {bound.stage.name:14} {bound.uri}")
            return 0
        _run_all(chosen, recipe, known)
    except Exception as error:
        return runner.fail(error)
    return 0


def why_job(arguments: Sequence[str] | None = None) -> int:
    """Prints a training group's story: the job behind jobs/why.py."""
    parser = _parser("jobs/why.py", "Tell a training group's story, from the raw document to the steps that used it.")
    parser.add_argument("query_id", type=_id, nargs="?", help="of a table groups, candidates or plan")
    known = _only_known(parser, arguments)
    try:
        from chuxin.why import story

        for line in story(_committed(known), known.query_id):
            print(line, flush=True)
    except Exception as error:
        return runner.fail(error)
    return 0


def forget_job(arguments: Sequence[str] | None = None) -> int:
    """Lists, and with --apply removes, all that derives from a passage: the job behind jobs/forget.py."""
    parser = _parser("jobs/forget.py", "List all that derives from a passage; remove it with --apply.")
    parser.add_argument("passage_id", type=_id, nargs="?", help="of the table passages")
    parser.add_argument("--apply", action="store_true", help="remove it; the next run of the recipe rebuilds the rest")
    known = _only_known(parser, arguments)
    try:
        from chuxin.forget import comes_back, finish_removals, remove, traces
        from chuxin.lineage import directories, every_artifact, unfinished

        recipe = load_recipe(known.config, known.workspace)
        inside = directories(recipe.workspace)
        if known.apply:
            for uri in inside:
                lease.require_free(uri, uri.rpartition("/")[2])
            for uri in finish_removals(inside):
                print(f"{uri}: a killed removal had begun on it; it is gone now")
        artifacts, gone = every_artifact(recipe.workspace)
        for uri in sorted(gone.values()):
            print(f"gone, not searched          {uri}")
        for uri in unfinished(recipe.workspace):
            print(f"unfinished, not searched    {uri}")
        found = traces(artifacts, known.passage_id, inside)
        for place in found.raw:
            print(f"raw text, yours to remove   {place}")
        for trace in found.made:
            print(f"{trace.artifact.manifest['stage']:14} {trace.artifact.uri}: {trace.what}")
        for trace in found.elsewhere:
            print(f"in another workspace        {trace.artifact.uri}: {trace.what}")
        number = f"{len(found.made)} artifact{'s' * (len(found.made) != 1)}"
        if not known.apply:
            print(f"--apply removes {number}, the report that shows samples of them, and forgets the text")
            return 0
        forgotten = None if recipe.curate is None else recipe.curate.forgotten
        if forgotten is None and (recipe.curate is not None or comes_back(found, gone)):
            remedy = "Add `forgotten: FILE` to the section curate and run this again"
            raise InputError("curate.forgotten", "the config names no file of forgotten passages", remedy)
        answers = _answer_stores(recipe, [artifact for artifact in artifacts if artifact.uri in inside])
        bought = remove(found, known.passage_id, forgotten, answers, [f"{recipe.workspace}/{REPORT}"])
        print(f"removed {number}, {bought} stored answers and the report; the recipe makes them anew without it")
        if found.elsewhere:
            print("what the recipe takes from elsewhere may hold it still: forget it there before the next run")
    except Exception as error:
        return runner.fail(error)
    return 0


def _answer_stores(recipe: RecipeConfig, artifacts: Sequence[Artifact]) -> set[str]:
    """Returns the directories of the workspace's own answer store, and of all that a stage of it wrote or may write."""
    given: set[str | None] = {None}
    given |= {artifact.manifest.get("config", {}).get("execution", {}).get("answers") for artifact in artifacts}
    given |= {getattr(getattr(section, "execution", None), "answers", None) for section in vars(recipe).values()}
    return {LLMExecution(answers=answers).answers_in(recipe.workspace) for answers in given}


def _id(given: str) -> int:
    """An id: 63 bits."""
    value = int(given)
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError(f"{given} is no id: ids are numbers of 0 to 2**63 - 1")
    return value


def _only_known(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line that takes no fields of a config; the id is required but for --help."""
    known = parser.parse_args(arguments)
    if known.help:
        print(parser.format_help())
        sys.exit(0)
    if next(value for name, value in vars(known).items() if name.endswith("_id")) is None:
        parser.error("an id is needed")
    return known


def _committed(known: argparse.Namespace) -> list[Artifact]:
    """Returns the recipe's committed artifacts, in order, and what others they were made from."""
    from chuxin.lineage import ancestry

    recipe = load_recipe(known.config, known.workspace)
    return ancestry([Artifact(bound.uri) for bound in _bind(recipe, known.config) if bound.committed]).artifacts


def _run_all(chosen: list[Bound], recipe: RecipeConfig, known: argparse.Namespace) -> None:
    from chuxin import story
    from chuxin.report.page import render
    from chuxin.report.table import text_table

    started, done = time.time(), []
    print(f"recipe {recipe.name}: {len(chosen)} stages → {recipe.workspace}", flush=True)
    if known.submit:
        for index, bound in enumerate(chosen, 1):
            before = bound.committed
            artifact = Artifact(bound.uri) if before else \
                runner.run_submitted(bound, recipe, known.submit)
            done.append((artifact, before))
            _line(bound, artifact, f"{index:2}/{len(chosen)} ", before)
    else:
        with runner.session(recipe.execution.num_cpus, recipe.execution.dashboard) as page:
            print(f"dashboard {page}" if page else "no dashboard (execution.dashboard: false)", flush=True)
            following = _following(chosen)
            for index, bound in enumerate(chosen, 1):
                position = f"{index:2}/{len(chosen)} "
                done.append(_run_one(bound, recipe, position, following.get(bound.uri)))
    summary = story.summarise(recipe, done)
    page = f"{recipe.workspace}/{REPORT}"
    fs, path = filesystem(page)
    fs.pipe_file(path, render(summary).encode())
    print(f"\n{text_table(summary)}\n\nreport {page}   total {runner.clock(time.time() - started)}", flush=True)


def _following(bound: Sequence[Bound]) -> dict[str, Bound]:
    """Returns by artifact which stage is to run after a stage that is to run."""
    waiting = [one for one in bound if not one.committed]
    return dict(zip((one.uri for one in waiting), waiting[1:], strict=False))


def _run_one(
    bound: Bound, recipe: RecipeConfig, position: str, following: Bound | None = None
) -> tuple[Artifact, bool]:
    before = bound.committed
    artifact = runner.run_here(bound, recipe, following)
    if before:  # by another driver since: the engines kept for it have nobody to take them over
        from chuxin.synthesis.llm import release_engines

        release_engines()
    _line(bound, artifact, position, before)
    return artifact, before


def _line(bound: Bound, artifact: Artifact, position: str, skipped: bool) -> None:
    manifest = artifact.manifest
    seconds = "skipped, committed" if skipped else f"ran {manifest['seconds']:.1f} s"
    dropped = sum(manifest["drops"].values())
    rows = f"{manifest['rows_in']:,} → {manifest['rows_out']:,} rows" + (f", {dropped:,} dropped" if dropped else "")
    print(f"{position}{bound.stage.name:14} {seconds:20} {rows}", flush=True)


def _up_to(bound: list[Bound], last: str | None) -> list[Bound]:
    names = [b.stage.name for b in bound]
    if last is not None and last not in names:
        raise InputError("--to", f"the recipe has no stage `{last}`", f"Stages: {', '.join(names)}")
    return bound[: names.index(last) + 1] if last else bound


def _override(
    parser: argparse.ArgumentParser, known: argparse.Namespace, config: T, rest: list[str], chosen: str = ""
) -> T:
    """Applies the flags that are fields of the config; `--help` prints both kinds of flags and exits.

    `chosen` is the flag that chooses this section, for what is printed.
    """
    if known.help:
        print(parser.format_help(), end="\n\n")
        rest = ["--help"]
    return override(config, rest, parser.prog + chosen) if rest else config


def _bind(recipe: RecipeConfig, config: str) -> list[Bound]:
    """Binds the recipe; an input that does not exist or fit is named with its line in the config."""
    try:
        require_models_of_own(recipe)
        return runner.bind(recipe, STAGES)
    except InputError as error:
        name = error.where.rpartition("/")[2].rpartition(": ")[2]
        text = Path(config).read_text(encoding="utf-8") if Path(config).is_file() else ""
        line = next((n for n, written in enumerate(text.splitlines(), 1) if name and name in written), None)
        where = f"{config}:{line}: {error.where}" if line else error.where
        raise InputError(where, error.problem, error.remedy) from error


def load_recipe(config: str, workspace: str | None) -> RecipeConfig:
    """Loads a world's config with its workspace made absolute, so that every process means the same place.

    Raises:
        InputError: The config does not load, or a submitted job would write into its unpacked upload.
    """
    recipe = load(RecipeConfig, config)
    chosen = os.path.expanduser(workspace or recipe.workspace)
    if "://" not in chosen:
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not os.path.isabs(chosen):
            problem = f"the workspace {chosen} is relative, and a job runs in a copy of the working directory"
            raise InputError(config, problem, "Give an absolute workspace that all nodes reach")
        chosen = os.path.abspath(chosen)
    return dataclasses.replace(recipe, workspace=chosen)


def _parser(program: str, about: str) -> argparse.ArgumentParser:
    # A default config found from the package's own place, so that a bare `jobs/finetune.py` works from anywhere.
    root = Path(__file__).resolve().parents[2]
    default = os.path.relpath(root / DEFAULT_CONFIG)
    parser = argparse.ArgumentParser(prog=program, description=about, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default=default, help="a world's recipe.yaml (default: %(default)s)")
    parser.add_argument("--workspace", help="directory or URI for the artifacts, instead of the config's")
    parser.add_argument("--help", "-h", action="store_true", help="this text and every field of the config")
    return parser
