"""Summary: everything the report shows of a run, as plain data. Built by the recipe from the manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageRow:
    """One stage's manifest, as far as it is shown."""

    name: str
    """The stage's name in the recipe."""
    seconds: float
    """Wall time of the run that committed it, also where this run skipped it."""
    rows_in: int
    """Rows it read."""
    rows_out: int
    """Rows it kept; more than it read where documents are split into passages."""
    drops: Mapping[str, int]
    """Rows that fell, by reason."""
    status: str
    """"ran" or "skipped"."""
    fingerprint: str
    """Names what was computed."""
    histograms: Mapping[str, list[int]] = field(default_factory=dict)
    """Counts by name, in the bins of bins.py."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further notes of the manifest; the page shows those that are single numbers or words."""

    @property
    def dropped(self) -> int:
        """Rows that fell, for any reason."""
        return sum(self.drops.values())

    @property
    def handled(self) -> int:
        """Rows that shares refer to: those read, or what they were split into if that is more."""
        return max(self.rows_in, self.rows_out + self.dropped)


@dataclass(frozen=True)
class Contamination:
    """One kind of benchmark leak in the training data."""

    what: str
    """For example "training queries equal to a benchmark query"."""
    found: int
    """Rows that matched."""
    dropped: int
    """Rows kept out of training because of it; the others were only flagged."""


@dataclass(frozen=True)
class Summary:
    """One run."""

    name: str
    """The recipe's name."""
    created: str
    """Date and time, as shown."""
    machine: str
    """Processor, cores, memory, accelerators; as shown."""
    versions: Mapping[str, str]
    """Packages and their versions."""
    stages: tuple[StageRow, ...]
    """In the recipe's order."""
    losses: Mapping[str, Mapping[str, list[tuple[int, float]]]] = field(default_factory=dict)
    """(step, value) by training stage and term; the first term is the loss itself."""
    contamination: tuple[Contamination, ...] = ()
    """Empty means: not looked for."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """The evaluate stage's results.json; empty if it did not run."""
    config_yaml: str = ""
    """The resolved config."""
