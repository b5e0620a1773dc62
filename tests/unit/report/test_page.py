"""The page: self-contained, complete, escaped, and well-formed."""

import dataclasses
import re
from html.parser import HTMLParser
from itertools import combinations

import pytest

from chuxin.report.page import curves, funnel, render, scalar_facts, system_classes
from chuxin.report.summary import Contamination, StageRow, Summary

VOID = {"meta", "hr", "br", "link", "img", "input"}


class Checker(HTMLParser):
    """Collects text and tags, and fails on a tag that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += " " + data


def parse(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    checker.text = re.sub(r"\s+", " ", checker.text)
    return checker


def scores(mean: float) -> dict:
    return {
        name: {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}
        for name in ("ndcg_at_10", "recall_at_100")
    }


def results() -> dict:
    systems = {"BM25": 0.447, "pretrained": 0.2, "finetuned": 0.681, "finetuned-hybrid": 0.702}
    gains = [
        {"system": later, "baseline": earlier, "ndcg_at_10": {"mean": systems[later] - systems[earlier],
         "low": -0.1 if earlier == "pretrained" else 0.2, "high": 0.5, "significant": earlier != "pretrained"}}
        for earlier, later in combinations(systems, 2)
    ]  # fmt: skip
    part = {"n": 600, "scores": {name: scores(mean) for name, mean in systems.items()}, "differences": gains}
    entry = {"queries": 600, "corpus": 2100, "slices": {"all": part, "paraphrase": part}}
    return {
        "systems": list(systems),
        "bases": {"finetuned-hybrid": "finetuned"},
        "bootstrap": {"samples": 10_000, "seed": 7, "level": 0.95, "min_queries": 20},
        "tasks": {"城市": entry},
    }


LOSSES = [(i, 5 - i / 100) for i in range(1, 301)]
STAGES = (
    StageRow("ingest", 9.8, 1000, 990, {"not_json": 10}, "skipped", "f" * 32),
    StageRow("curate", 75.0, 990, 600, {"too_short": 90, "leaked <b>": 300}, "ran", "0123456789abcdef",
             {"passage_characters": [0, 0, 5, 20]}, {"rate": 1234.5, "nested": {"x": 1}}),
    StageRow("finetune", 60.0, 600, 600, {}, "ran", "e" * 32),
)  # fmt: skip
SUMMARY = Summary(
    name="小样 & <script>",
    created="2025-01-31 14:02",
    machine="2 cores",
    versions={"torch": "2.13.0"},
    stages=STAGES,
    losses={
        "finetune": {"loss": LOSSES},
        "refine": {
            "loss": LOSSES, "dense_loss": LOSSES, "sparse_self_loss": LOSSES[200:], "dev_ndcg_at_10": LOSSES[:1],
        },
    },
    contamination=(Contamination("training queries equal to a benchmark query", 41, 40),),
    evaluation=results(),
    config_yaml="name: 小样\n",
)


def test_everything_is_on_the_page() -> None:
    text = parse(render(SUMMARY)).text
    for part in (
        "小样 & <script>", "2025-01-31 14:02", "torch 2.13.0", "2 min 15 s in 2 of 3 stages",
        "城市", "68.1", "+23.4", "+20.0 to +50.0", "2,100 passages",
        "paraphrase · 600 queries",
        "training queries equal to a benchmark query 41 40", "−300", "30.3 %", "leaked <b>",
        "in 300 steps", "passage_characters", "0123456789ab", "1,234", "10,000 resamples",
        "name: 小样", "+2.1 finetuned-hybrid over finetuned",
    ):  # fmt: skip
        assert part in text, part
    assert "nested" not in text


def test_scores_are_plotted_apart_from_lengths_and_samples_are_escaped() -> None:
    counts = [0] * 24
    counts[14] = 3
    histograms = {"logit_given": counts, "probability_yes": counts, "logit_none": [0] * 24, "query_chars": [0, 5]}
    first = {"query": "<b>哪一年建成</b>", "kind": "question", "difficulty": "hard", "length": "short",
             "status": "keep"}
    queries = [first, {**first, "query": "石桥", "kind": "keywords", "difficulty": "", "status": "copied"}]
    samples = [{"passage_id": "7", "source": "wudao", "text": "石桥建成于", "queries": queries}]
    llm = {"calls_bought": 30, "calls_stored": 4, "prompt_tokens_bought": 1000, "prompt_tokens_cached": 250}
    facts = {"samples": samples, "llm": llm, "model": "llm@12", "engines": 2, "hour_price": 3.0}
    stage = StageRow("rerank", 900.0, 3, 3, {}, "ran", "a" * 32, histograms, facts)
    text = parse(render(dataclasses.replace(SUMMARY, stages=(*STAGES, stage)))).text
    for part in ("Scores", "logit_given rerank · 3 2", "probability_yes rerank · 3 0.7", "query_chars rerank · 5",
                 "Written queries", "石桥建成于 wudao <b>哪一年建成</b> question, hard, short",
                 "石桥 keywords, short · copied", "rerank llm@12 30 4 1,000 25.0 % 0 0.500 1.50"):
        assert part in text, part
    assert "logit_none" not in text and "Written queries" not in parse(render(SUMMARY)).text


def test_is_self_contained_small_and_without_script() -> None:
    html = render(SUMMARY)
    page = parse(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href"} & set(attrs) for _, attrs in page.tags)
    assert "url(" not in html and "@import" not in html and "http" not in html
    assert len(html) < 60_000


def test_has_both_colour_schemes_and_a_phone_layout() -> None:
    html = render(SUMMARY)
    assert "prefers-color-scheme: dark" in html and "max-width: 40rem" in html
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in parse(
        html
    ).tags


def test_gains_that_are_not_significant_are_grey() -> None:
    tiles = render(SUMMARY).split('class="tile"')[1].split("</table>")[0]
    rows = re.findall(r'<tr class="(\w*)">', tiles)
    assert rows == ["", "unsure", ""]  # over BM25, over pretrained; finetuned-hybrid over finetuned


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation": {}, "losses": {}, "contamination": (), "config_yaml": ""},
        {"stages": ()},
        {"losses": {"finetune": {"loss": []}}},
    ],
)
def test_a_run_that_stopped_early_has_a_page(change: dict) -> None:
    parse(render(dataclasses.replace(SUMMARY, **change)))


def test_a_single_system_has_no_gains() -> None:
    evaluation = results()
    evaluation["systems"], evaluation["bases"] = ["BM25"], {}
    for part in evaluation["tasks"]["城市"]["slices"].values():
        part["scores"], part["differences"] = {"BM25": scores(0.4)}, []
    assert "gain in" not in parse(render(dataclasses.replace(SUMMARY, evaluation=evaluation))).text


def test_every_system_has_a_row_with_what_it_has_to_beat() -> None:
    table = render(SUMMARY).split("Scores in numbers")[1].split("</table>")[0]
    rows = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in table.split("</tr>")[1:-1]]
    assert rows[:4] == [
        "城市 all 600 BM25 44.7 44.7",
        "pretrained 20.0 20.0 −24.7 +20.0 to +50.0",
        "finetuned 68.1 68.1 +23.4 +20.0 to +50.0 +48.1 −10.0 to +50.0 pretrained",
        "finetuned-hybrid 70.2 70.2 +25.5 +20.0 to +50.0 +2.1 +20.0 to +50.0 finetuned",
    ]
    assert rows[4].startswith("paraphrase 600 BM25") and len(rows) == 8


def test_a_training_shows_its_terms_where_it_has_several() -> None:
    assert [name for name, _ in curves({"loss": LOSSES, "dense_loss": LOSSES})] == ["loss"]
    assert [name for name, _ in curves(SUMMARY.losses["refine"])] == list(SUMMARY.losses["refine"])
    page = parse(render(SUMMARY))
    assert "sparse self loss 2.98 → 2.01" in page.text  # of the running mean
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_funnel_bars_add_up_and_share_a_scale() -> None:
    bars = funnel(STAGES)
    assert [bar["stage"].name for bar in bars] == ["ingest", "curate"]
    for bar in bars:
        assert bar["kept"] + bar["dropped_width"] == pytest.approx(bar["stage"].rows_in / 10)
        reasons = bar["reasons"]
        assert sum(reason["width"] for reason in reasons) == pytest.approx(bar["dropped_width"])
        assert min(reason["left"] for reason in reasons) == pytest.approx(bar["dropped_left"])
        assert [r["count"] for r in reasons] == sorted((r["count"] for r in reasons), reverse=True)


def test_funnel_of_documents_split_into_passages() -> None:
    (bar,) = funnel([StageRow("curate", 1.0, 100, 300, {"short": 100}, "ran", "f")])
    assert (bar["kept"], bar["dropped_left"], bar["dropped_width"], bar["share"]) == (75, 75, 25, 0.25)
    assert funnel([StageRow("serve", 1.0, 0, 0, {}, "ran", "f")]) == []


def test_looks_and_facts() -> None:
    found = system_classes({"systems": ["BM25", "a", "b", "b-sparse"], "bases": {"b-sparse": "b"}})
    assert found == {"BM25": "base", "a": "mid", "b": "lead", "b-sparse": "mid"}
    assert system_classes({}) == {}
    facts = {
        "n": 12345,
        "rate": 0.12346,
        "big": 98765.4,
        "ok": True,
        "lang": "zh",
        "list": [1],
        "long": "x" * 99,
    }
    assert scalar_facts(facts) == [
        ("n", "12,345"), ("rate", "0.1235"), ("big", "98,765"), ("ok", "True"), ("lang", "zh"),
    ]  # fmt: skip
