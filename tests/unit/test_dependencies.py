"""The dependency rule: what computes runs without Ray, and stages meet in schema.py and on disk only."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOT = ROOT / "platform"
MODULES = {
    ".".join(p.relative_to(SOURCE_ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((SOURCE_ROOT / "chuxin").rglob("*.py"))
}
STAGES = {"corpus", "pairs", "synthesis", "mining", "packing", "training", "evaluation", "release", "serving", "sample"}
SHARED = {"models", "encoding", "search", "losses", "report"}
# Stage packages that may import another. Labelled sets are read while the corpus is curated, by the pairs' adapters.
ALLOWED = {("corpus", "pairs")}
# What binds stages to Ray, to files and to the command line; everything else is pure.
RIM = {"artifacts", "telemetry", "runner", "recipe", "commands"}
RAY = re.compile(r"chuxin\.(artifacts|telemetry|runner|\w+\.pipeline|training\.worker|synthesis\.llm|serving\.\w+)")
OWNERS = {
    "ray": RAY,
    "pydantic": re.compile(r"chuxin\.config"),
    "deepspeed": re.compile(r"chuxin\.training\.(deepspeed|worker)"),
    "vllm": re.compile(r"chuxin\.synthesis\.engine"),
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports at any depth, `from a import b` as both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:  # ruff keeps relative ones out of the package
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_rim(module: str) -> bool:
    head = module.removeprefix("chuxin.")
    return head in RIM or bool(RAY.fullmatch(module))


def test_only_the_rim_imports_ray_and_the_engines() -> None:
    wrong = []
    for module, path in MODULES.items():
        tops = {name.partition(".")[0] for name in imports(path)}
        wrong += [f"{module} imports {package}" for package, owners in OWNERS.items()
                  if package in tops and not owners.fullmatch(module)]
    assert not wrong


def test_stages_meet_in_schema_and_on_disk_only() -> None:
    wrong = []
    for module, path in MODULES.items():
        own = (module.split(".") + [""])[1]
        used = {name.split(".")[1] for name in imports(path) if name.startswith("chuxin.")} & STAGES - {own}
        if own in STAGES | SHARED:
            wrong += [f"{module} imports {other}" for other in sorted(used) if (own, other) not in ALLOWED]
    assert not wrong


def test_the_core_imports_without_ray_pydantic_deepspeed_and_vllm() -> None:
    # A GPU test machine may hold torch, transformers, pyarrow and numpy only.
    core = [m for m in MODULES if not is_rim(m)]
    assert "chuxin.schema" in core and any(m.startswith("chuxin.models.") for m in core)
    code = '''
import importlib, importlib.machinery, importlib.util, sys

class Without(importlib.machinery.PathFinder):
    """Finds what is installed, except these: as if they were not."""
    hidden = {"ray", "pydantic", "deepspeed", "vllm"}
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
assert not any(map(importlib.util.find_spec, Without.hidden))
failed = []
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ImportError as error:
        failed.append(f"{module}: {error}")
sys.exit("\\n".join(failed) or 0)
'''
    done = subprocess.run([sys.executable, "-c", code, *core], capture_output=True, text=True, timeout=180,
                          env={**os.environ, "PYTHONPATH": str(SOURCE_ROOT)})
    assert done.returncode == 0, done.stderr


def test_configs_are_light() -> None:
    # `--help` and every worker load them all: none may pull in torch, transformers, deepspeed or ray.
    configs = [m for m in MODULES if m.endswith(".config")]
    code = ("import importlib, sys\n"
            "for m in sys.argv[1:]: importlib.import_module(m)\n"
            "sys.exit(', '.join(sorted({'torch', 'transformers', 'deepspeed', 'ray'} & set(sys.modules))) or 0)")
    done = subprocess.run([sys.executable, "-c", code, *configs], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(SOURCE_ROOT)})
    assert done.returncode == 0, f"importing the configs imports {done.stderr}"


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime = _declared(project["dependencies"])
    extras = project["optional-dependencies"]
    runtime |= _declared(extras["gpu"] + extras["cpu-llm"])  # every machine has one of the two
    every = runtime | _declared(extras["dev"])
    distributions = metadata.packages_distributions()
    for top, declared in (("platform", runtime), ("jobs", runtime), ("tests", every)):
        for path in sorted((ROOT / top).rglob("*.py")):
            siblings = (ROOT / "tests").rglob("*.py") if top == "tests" else path.parent.glob("*.py")
            known = {"chuxin", "tests", *(file.stem for file in siblings), *sys.stdlib_module_names}
            for name in sorted({n.partition(".")[0] for n in imports(path)} - known):
                owners = {_normal(d) for d in distributions.get(name, [name])}
                assert owners & declared, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not pin"


def _declared(requirements: list[str]) -> set[str]:
    return {_normal(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
