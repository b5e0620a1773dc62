"""The pinned sets still resolve from the registry, for both Pythons; the GPU set from a machine without a GPU too."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.network
ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "cluster" / "requirements"


def pins(text: str) -> set[str]:
    return set(re.findall(r"^[\w.-]+==\S+", text, flags=re.MULTILINE))


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("name, options", [
    ("gpu", ["--extra", "gpu"]),
    ("cpu", ["--extra", "cpu-llm", "--excludes", str(REQUIREMENTS / "cpu-without.txt"),
             "--overrides", str(REQUIREMENTS / "cpu-override.txt")]),
])
def test_the_lock_is_what_resolves(name: str, options: list[str], python: str) -> None:
    """Resolves pyproject.toml under the lock's versions: each must exist, fit all others, and none may be missing."""
    lock = REQUIREMENTS / f"{name}.txt"
    environment = dict(os.environ)
    if "PIP_CERT" in environment:  # a private certificate that pip is configured with serves uv too
        environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--python-version", python,
               "--python-platform", "x86_64-manylinux_2_28", "--extra", "dev", *options, "--constraints", str(lock),
               "pyproject.toml"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert pins(done.stdout) == pins(lock.read_text(encoding="utf-8")), "run `make lock`"
