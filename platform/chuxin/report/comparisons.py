"""Which systems an evaluation's results set side by side: one leads, and what is made from another is held to it.

Leaves out: how differences are computed (evaluation) and shown (page.py, table.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def leader(results: Mapping[str, Any]) -> str:
    """Returns the system that the report leads with: the last that is not made from another's vectors or results."""
    systems = [system for system in results["systems"] if system not in results["bases"]]
    return (systems or results["systems"])[-1]


def comparisons(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns pairs (system, baseline): the leader with each other system, then what is made from one with that one."""
    systems, bases, lead = results["systems"], results["bases"], leader(results)
    plain = [(lead, system) for system in systems if system not in bases and system != lead]
    return plain + [(system, bases[system]) for system in systems if system in bases]


def reference(system: str, results: Mapping[str, Any]) -> str | None:
    """Returns what a system has to beat: the one it is made from, or the one before it; None for the first."""
    if system in results["bases"]:
        return results["bases"][system]
    plain = [name for name in results["systems"] if name not in results["bases"]]
    place = plain.index(system)
    return plain[place - 1] if place else None


def gain(part: Mapping[str, Any], system: str, baseline: str) -> Mapping[str, Any]:
    """Returns the difference of nDCG@10 between two systems in one slice of a task."""
    pair = (system, baseline)
    return next(d["ndcg_at_10"] for d in part["differences"] if (d["system"], d["baseline"]) == pair)
