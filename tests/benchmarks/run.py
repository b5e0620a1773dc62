"""Benchmarks: two sides that must give the same result, run in turns, compared by the CPU time they take.

    python tests/benchmarks/run.py NAME [--rounds N]

A benchmark is a file bench_NAME.py beside this one with
    SETTINGS    a dict of sizes, dtype and seeds, as the issue that asked for the figure fixes them
    ours()      does the work and returns its result
    theirs()    does the same work with the peer
    equal(a, b) True if the two results are the same, by a tolerance stated there
or, where a figure is no comparison of two times, with
    measure(rounds)  returns the same keys by its own means
Both sides run once before the clock (they load and cache what they need; these results are compared), then N times
in turns. CPU time is that of all threads and of child processes that have ended. The last line of the output is one
JSON object; it is written to results/NAME.json too, with the date and the machine.
"""

import argparse
import datetime
import importlib.util
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("chuxin", "torch", "transformers", "ray", "FlagEmbedding", "sentence-transformers", "numpy")


def clocked(side: Callable[[], Any]) -> tuple[float, float]:
    """Runs one side; returns its CPU seconds and its wall seconds."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    side()
    return cpu_seconds() - cpu, time.perf_counter() - wall


def measure(bench: ModuleType, name: str, rounds: int) -> dict[str, Any]:
    """Compares a benchmark's two sides.

    Returns:
        `ratio`: median over the rounds of theirs / ours in CPU seconds, above 1 where ours takes less; its extremes;
        `ours` and `theirs`: median CPU seconds; `wall`: the same three figures by the wall clock.
    """
    if hasattr(bench, "measure"):
        return {"name": name, **bench.measure(rounds)}
    same = bool(bench.equal(bench.ours(), bench.theirs()))
    ours, theirs = [], []
    for turn in range(rounds):
        # Who goes first alternates too, so that a clock rate that falls over time favours neither.
        for side, times in ((bench.ours, ours), (bench.theirs, theirs))[:: 1 if turn % 2 == 0 else -1]:
            times.append(clocked(side))
    ratios, wall_ratios = ([b[i] / a[i] for a, b in zip(ours, theirs, strict=True)] for i in (0, 1))
    ours_cpu, ours_wall = (statistics.median(column) for column in zip(*ours, strict=True))
    theirs_cpu, theirs_wall = (statistics.median(column) for column in zip(*theirs, strict=True))
    return {
        "name": name, "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "ours": ours_cpu, "theirs": theirs_cpu, "unit": "CPU seconds", "equal": same, "rounds": rounds,
        "settings": bench.SETTINGS,
        "wall": {"ratio": statistics.median(wall_ratios), "ours": ours_wall, "theirs": theirs_wall, "unit": "seconds"},
    }


def machine() -> dict[str, Any]:
    """Describes this machine by what a reader needs to judge a figure."""
    processors = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in processors if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory),
            "python": sys.version.split()[0],
            "packages": {p: installed[p.lower()] for p in PACKAGES if p.lower() in installed}}


def main(arguments: list[str] | None = None, folder: Path = HERE) -> int:
    """Runs one benchmark. Exit codes: 0, 1 if the two sides differ, 2 if there is no such benchmark."""
    known = sorted(file.stem.removeprefix("bench_") for file in folder.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"one of: {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    if given.name not in known or given.rounds < 1:
        problem = f"no benchmark `{given.name}`" if given.name not in known else "--rounds is below 1"
        print(f"error: tests/benchmarks: {problem}. There are: {', '.join(known) or 'none'}.", file=sys.stderr)
        return 2
    spec = importlib.util.spec_from_file_location(f"bench_{given.name}", folder / f"bench_{given.name}.py")
    bench = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # processes of its own find it by name
    spec.loader.exec_module(bench)
    result = measure(bench, given.name, given.rounds)
    record = {**result, "date": datetime.date.today().isoformat(), "machine": machine()}
    target = folder / "results" / f"{given.name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return 0 if result["equal"] else 1


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1] / "platform"))
    sys.exit(main())
