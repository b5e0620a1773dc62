"""A real Ray cluster on this machine, as `ray start --head` makes it: dashboard, job agent and metrics on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_S = 90


class Cluster(NamedTuple):
    """Where a running cluster answers."""

    dashboard: str
    """http://127.0.0.1:PORT, the address that `ray job submit` takes."""
    metrics: str
    """The Prometheus page of its one node."""
    folder: Path
    """Where its sessions keep logs and what jobs upload."""

    def run(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs a command at the project's root, as a user of the cluster would."""
        return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)

    def get(self, path: str) -> Any:
        """Asks the dashboard's HTTP API."""
        with urllib.request.urlopen(self.dashboard + path, timeout=30) as response:
            return json.load(response)


def environment() -> dict[str, str]:
    """This environment's `ray` and `python` come first; the package is for the jobs to find."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Four logical CPUs on ports of its own, to meet no other cluster of this machine; ended with the module."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "metrics-export-port", "ray-client-server-port", "runtime-env-agent-port", "node-manager-port",
             "object-manager-port")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    pages = [f"http://127.0.0.1:{ports[name]}" for name in ("dashboard-port", "metrics-export-port")]
    with tempfile.TemporaryDirectory(prefix="chuxin-", dir="/tmp") as folder:  # sockets need a short path
        found = Cluster(*pages, Path(folder) / "ray")
        log = Path(folder) / "start.log"
        command = ["ray", "start", "--head", "--block", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
                   "--node-ip-address=127.0.0.1", "--num-cpus=4", "--object-store-memory=200000000",
                   f"--temp-dir={found.folder}", "--disable-usage-stats", *(f"--{n}={p}" for n, p in ports.items())]
        with open(log, "wb") as output:
            # A session of its own: all that Ray starts on this node belongs to it.
            head = subprocess.Popen(
                command, env=environment(), stdout=output, stderr=output, start_new_session=True
            )
        try:
            for url in (f"{found.dashboard}/api/jobs/", f"{found.metrics}/metrics"):
                wait_until_it_answers(url, head, log)
            yield found
        finally:
            end(head)


def free_ports(number: int) -> list[int]:
    """Returns free ports between those of Ray's workers (up to 19999) and those that Linux hands to clients."""
    found: list[int] = []
    for port in random.sample(range(20000, 32000), 500):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            found.append(port)
        if len(found) == number:
            return found
    raise RuntimeError("no free ports between 20000 and 32000")


def wait_until_it_answers(url: str, process: subprocess.Popen, log: Path) -> None:
    """Waits for a page of the dashboard or of the node's agent."""
    limit = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            if process.poll() is not None or time.monotonic() > limit:
                pytest.fail(f"the cluster does not answer ({error}): {log.read_text()[-2000:]}")
            time.sleep(0.5)


def end(head: subprocess.Popen) -> None:
    """Ends every process of the head's session; `ray stop` would look for Ray's names on the whole machine."""
    while members := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if session(pid) == head.pid]:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
        head.poll()
        time.sleep(0.1)
    head.wait()


def session(pid: int) -> int | None:
    """Returns a process's session id; workers have process groups of their own and the session of the head."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
