"""Records what code each stage's version stands for, in tests/data/stage_code.json.

A stage's version is part of its artifact's fingerprint: work committed by other code is only redone when the version
says so. tests/unit/test_versions.py compares the code with this record. The hash covers the syntax trees, without
docstrings and comments, of every module the stage's function reaches: its own package and the pure packages it
shares. It leaves out the rim that runs any stage alike (artifacts, files, runner, telemetry, config, command line), and
libraries.

    python tests/record_stage_versions.py                  after raising `version` in chuxin/recipe.py
    python tests/record_stage_versions.py --same-output    the code changed and computes the same rows
"""

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOT = ROOT / "platform"
RECORD = ROOT / "tests" / "data" / "stage_code.json"
_RIM = ("artifacts", "commands", "config", "errors", "files", "recipe", "runner", "telemetry")
RIM = {f"chuxin.{name}" for name in _RIM}


class Difference(NamedTuple):
    """A stage whose code is not the recorded code."""

    stage: str
    raised: bool
    """The version differs from the recorded one (or the stage is new)."""


def module_file(module: str, source_root: Path) -> Path | None:
    """Returns the file of a module or package, or None when the name is no module (an attribute, say)."""
    base = source_root.joinpath(*module.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def closure(module: str, source_root: Path) -> dict[str, ast.Module]:
    """Parses a module and every chuxin module it reaches by an import at any depth, the rim left out."""
    trees: dict[str, ast.Module] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        file = module_file(name, source_root)
        if name in trees or name in RIM or file is None:
            continue
        trees[name] = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(trees[name]):
            if isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names if alias.name.startswith("chuxin.")]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chuxin"):
                queue += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return trees


def canonical(node: ast.AST) -> Iterator[str]:
    """Spells a tree out the same under Python 3.11 and 3.12: no positions, no empty fields, no bare strings."""
    yield f"({type(node).__name__}"
    for name, value in ast.iter_fields(node):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.Expr) and isinstance(getattr(item.value, "value", None), str):
                continue  # a docstring, of a module, a function or a field
            if isinstance(item, ast.AST):
                yield f" {name}="
                yield from canonical(item)
            elif item is not None:
                yield f" {name}={item!r}"
    yield ")"


def code_hash(module: str, source_root: Path = SOURCE_ROOT) -> str:
    """Hashes the code that a stage's module reaches."""
    trees = closure(module, source_root)
    text = "\n".join(f"{name} {''.join(canonical(trees[name]))}" for name in sorted(trees))
    return xxhash.xxh3_128_hexdigest(text.encode())


def current(source_root: Path = SOURCE_ROOT) -> dict[str, dict]:
    """Returns {stage: {version, code_hash}} of the code as it stands."""
    from chuxin.recipe import STAGES

    hashes = {stage.name: code_hash(stage.run.partition(":")[0], source_root) for stage in STAGES}
    return {stage.name: {"version": stage.version, "code_hash": hashes[stage.name]} for stage in STAGES}


def differences(now: dict[str, dict], recorded: dict[str, dict]) -> list[Difference]:
    """Compares; a stage that is no longer there differs, and its record may simply go."""
    return [Difference(stage, now.get(stage, {}).get("version") != recorded.get(stage, {}).get("version"))
            for stage in sorted(now.keys() | recorded.keys()) if now.get(stage) != recorded.get(stage)]


def main(arguments: list[str] | None = None, record: Path = RECORD) -> int:
    """Writes the record, or says which version must be raised first and returns 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--same-output", action="store_true", help="the changed code computes the same rows")
    same_output = parser.parse_args(arguments).same_output
    now, recorded = current(), json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    changed = differences(now, recorded)
    stuck = [d.stage for d in changed if not d.raised]
    if stuck and not same_output:
        print(f"error: the code of {', '.join(stuck)} changed and its version did not. Raise the version in "
              "platform/chuxin/recipe.py, or give --same-output if the rows stay the same", file=sys.stderr)
        return 2
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    print(f"recorded {len(now)} stages, changed: {', '.join(d.stage for d in changed) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(SOURCE_ROOT))
    sys.exit(main())
