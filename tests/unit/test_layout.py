"""The tree: no module may shadow the standard library's `platform`, and files stay small and well named."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "platform" / "chuxin"
SOURCES = sorted(p for top in ("platform", "jobs", "tests") for p in (ROOT / top).rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow the standard library's `platform`"


def test_platform_is_the_standard_library_with_the_root_on_the_path() -> None:
    # What a Ray worker sees: its working_dir stands first on PYTHONPATH, and ray calls platform.system() on import.
    code = "import platform, ray, uuid; print(platform.system(), platform.__file__)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    system, file = done.stdout.split()
    assert system == "Linux"
    assert not file.startswith(str(ROOT / "platform"))


def test_no_top_level_name_shadows_the_standard_library() -> None:
    tops = {p.stem for p in ROOT.iterdir() if p.is_dir() or p.suffix == ".py"} - {"platform"}
    assert not tops & sys.stdlib_module_names


def test_modules_do_not_shadow_the_packages_they_use() -> None:
    assert not {"ray", "torch", "datasets", "transformers"} & {p.stem for p in PACKAGE.iterdir()}


def test_the_package_is_imported_as_chuxin() -> None:
    trees = {relative(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert not [(path, name) for path, tree in trees.items() for name in imported(tree) if name.startswith("platform.")]


def test_no_text_names_the_package_through_its_source_root() -> None:
    wrong = ".".join(("platform", "chuxin"))
    suffixes = {".py", ".yaml", ".yml", ".toml", ".sh", ".json", ".md"}
    for top in ("platform", "jobs", "cluster", "tests"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and path.suffix in suffixes:
                assert wrong not in path.read_text(encoding="utf-8"), relative(path)


def test_every_package_folder_says_what_it_is() -> None:
    for folder in {p.parent for p in PACKAGE.rglob("*.py")}:
        init = folder / "__init__.py"
        assert init.exists(), f"{relative(folder)} has no __init__.py"
        body = ast.parse(init.read_text(encoding="utf-8")).body
        assert len(body) == 1 and ast.get_docstring(ast.Module(body, [])), f"{relative(init)}: one docstring, no more"


def test_files_stay_small() -> None:
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {path: n for path, n in lines.items() if n > (80 if path.startswith("jobs/") else 500)}


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [relative(p) for p in SOURCES if p.stem in drawers or drawers & set(p.relative_to(ROOT).parts)]


def test_jobs_can_be_submitted_by_their_name_alone() -> None:
    # `ray job submit --working-dir . -- jobs/finetune.py` needs a shebang and the executable bit.
    for path in (ROOT / "jobs").glob("*.py"):
        assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python"), relative(path)
        assert os.access(path, os.X_OK), f"{relative(path)} is not executable"
