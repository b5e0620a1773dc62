"""The run's page: one HTML file that needs nothing else, neither network nor script.

This module turns a Summary into numbers, labels and positions; templates/ lays them out. Charts of rows and
scores are HTML and CSS, so that their text keeps its size on a phone; loss curves are small inline SVGs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from chuxin.report import charts
from chuxin.report.bins import SCALES, scale_of
from chuxin.report.comparisons import comparisons, gain, leader, reference
from chuxin.report.summary import StageRow, Summary


def render(summary: Summary) -> str:
    """Returns the page's HTML."""
    loader = PackageLoader("chuxin.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "signed": _signed, "count": "{:,}".format, "clock": _clock}
    return environment.get_template("report.html.j2").render(
        summary=summary,
        funnel=funnel(summary.stages),
        tasks=[task_view(name, entry, summary.evaluation) for name, entry in _tasks(summary)],
        systems=system_classes(summary.evaluation),
        leader=leader(summary.evaluation) if summary.evaluation else "",
        bootstrap=summary.evaluation.get("bootstrap", {}),
        curves=[(stage, figures) for stage, terms in summary.losses.items() if (figures := curves(terms))],
        histograms=[
            (stage.name, name, bars, sum(counts))
            for stage in summary.stages
            for name, counts in stage.histograms.items()
            if scale_of(name) is None and (bars := charts.histogram(counts))
        ],
        scores=[(stage.name, figures) for stage in summary.stages if (figures := score_figures(stage))],
        calls=[call for stage in summary.stages if (call := calls_of(stage))],
        samples=[(stage.name, found) for stage in summary.stages if (found := stage.facts.get("samples"))],
        notes=[(stage.name, notes) for stage in summary.stages if (notes := scalar_facts(stage.facts))],
        seconds=sum(stage.seconds for stage in summary.stages if stage.status == "ran"),
    )


def system_classes(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the look of each system: one leads, BM25 is the baseline, the others stand between."""
    if not results:
        return {}
    looks = {system: "base" if system == "BM25" else "mid" for system in results["systems"]}
    return looks | {leader(results): "lead"}


def curves(terms: Mapping[str, Sequence[tuple[int, float]]]) -> list[tuple[str, charts.Curve]]:
    """Returns a training's figures: its loss, and then its terms where there are several."""
    drawn = [(name, charts.curve(values)) for name, values in terms.items() if values]
    return drawn if len(drawn) > 2 else drawn[:1]  # a single term is the loss itself


def funnel(stages: Sequence[StageRow]) -> list[dict[str, Any]]:
    """Returns the bars of rows by stage on one scale, each reason's bar where the rows it took would have
    stood.

    Stages without rows are left out, and so are those at the end that only pass rows on (training,
    evaluation).
    """
    shown = [stage for stage in stages if stage.handled]
    while shown and not shown[-1].dropped and shown[-1].rows_in == shown[-1].rows_out:
        shown.pop()
    scale = 100 / max((stage.handled for stage in shown), default=1)
    bars = []
    for stage in shown:
        end, reasons = stage.handled, []
        for reason, count in sorted(stage.drops.items(), key=lambda item: (-item[1], item[0])):
            if count:
                end -= count
                share = count / stage.handled
                reasons.append(
                    {
                        "name": reason,
                        "count": count,
                        "share": share,
                        "left": end * scale,
                        "width": count * scale,
                    }
                )
        bars.append(
            {
                "stage": stage,
                "kept": stage.rows_out * scale,
                "dropped_left": (stage.handled - stage.dropped) * scale,
                "dropped_width": stage.dropped * scale,
                "reasons": reasons,
                "share": stage.dropped / stage.handled,
            }
        )
    return bars


def task_view(name: str, entry: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one benchmark's slices, with the gains that the page shows."""
    systems = results["systems"]
    slices = []
    for kind, part in entry["slices"].items():
        gains = [(system, baseline, gain(part, system, baseline)) for system, baseline in comparisons(results)]
        best = {
            metric: max(part["scores"][system][metric]["mean"] for system in systems)
            for metric in ("ndcg_at_10", "recall_at_100")
        }
        rows = [(system, part["scores"][system], *_gains_of(system, part, results)) for system in systems]
        slices.append({"kind": kind, "n": part["n"], "scores": part["scores"], "gains": gains, "best": best,
                       "rows": rows})  # fmt: skip
    return {"name": name, "queries": entry["queries"], "corpus": entry["corpus"], "slices": slices}


def _gains_of(system: str, part: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[Any, str | None, Any]:
    """A system's gain over the first one, what else it has to beat, and its gain over that."""
    first, other = results["systems"][0], reference(system, results)
    over_first = gain(part, system, first) if system != first else None
    if other in (None, first):
        return over_first, None, None
    return over_first, other, gain(part, system, other)


def score_figures(stage: StageRow) -> list[tuple[str, list[charts.Bar], int]]:
    """Returns a stage's plots of scores (name, bars, number of scores), those of one scale over one range."""
    figures = []
    for kind in SCALES:
        counts = {name: own for name, own in stage.histograms.items() if scale_of(name) == kind and sum(own)}
        figures += [(name, bars, sum(counts[name])) for name, bars in charts.score_histograms(kind, counts).items()]
    return figures


def calls_of(stage: StageRow) -> dict[str, Any] | None:
    """Returns what a stage asked of a language model; None if it asked nothing."""
    counts = stage.facts.get("llm")
    if not counts:
        return None
    read = counts.get("prompt_tokens_bought", 0)
    hours, price = stage.seconds / 3600 * stage.facts.get("engines", 1), stage.facts.get("hour_price")
    return {
        "stage": stage.name, "model": stage.facts.get("model", ""), "bought": counts.get("calls_bought", 0),
        "stored": counts.get("calls_stored", 0), "prompt_tokens": read,
        "cached": counts.get("prompt_tokens_cached", 0) / max(read, 1),
        "output_tokens": counts.get("output_tokens_bought", 0),
        "hours": hours, "cost": None if price is None else hours * price,
    }  # fmt: skip


def scalar_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the facts that are one number or a short text, as they are shown."""
    shown = []
    for name, value in facts.items():
        if isinstance(value, bool) or (isinstance(value, str) and len(value) <= 60):
            shown.append((name, str(value)))
        elif isinstance(value, int):
            shown.append((name, f"{value:,}"))
        elif isinstance(value, float):
            shown.append((name, f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"))
    return shown


def _tasks(summary: Summary) -> Sequence[tuple[str, Mapping[str, Any]]]:
    return list(summary.evaluation.get("tasks", {}).items())


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    # A true minus sign: it is as wide as the plus, so the column stays aligned.
    return f"{100 * share:+.1f}".replace("-", "−")


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
