"""The table in the terminal."""

from chuxin.report.summary import StageRow, Summary
from chuxin.report.table import align, text_table, width

STAGES = (
    StageRow("ingest", 2.0, 1000, 900, {"不是JSON": 60, "empty": 40, "never": 0}, "skipped", "a" * 32),
    StageRow("curate", 61.25, 900, 1500, {"duplicate": 500}, "ran", "b" * 32),
)


def test_widths_of_chinese_and_combining_characters() -> None:
    assert [width(text) for text in ("abc", "中文", "ｱ", "Ａ", "e\u0301", "")] == [3, 4, 1, 2, 1, 0]


def test_columns_line_up_by_display_width() -> None:
    lines = align([("中文", "1"), ("a", "23")], "lr").splitlines()
    assert lines == ["中文   1", "a     23"]
    assert {width(line) for line in lines} == {8}


def test_stages_with_reasons_by_count_and_shares() -> None:
    lines = text_table(Summary("t", "", "", {}, STAGES)).splitlines()
    assert lines[1].split() == ["ingest", "skipped", "1,000", "900", "100", "10.0", "%", "2.0"]
    assert lines[2].split() == ["不是JSON", "60", "6.0", "%"]
    assert lines[3].split() == ["empty", "40", "4.0", "%"]
    # 900 documents became 2,000 passages: shares are of those.
    assert lines[4].split() == ["curate", "ran", "900", "1,500", "500", "25.0", "%", "61.2"]
    assert lines[6].split() == ["this", "run", "61.2"]
    assert "never" not in "\n".join(lines)
    assert width(lines[2].split("%")[0]) == width(lines[3].split("%")[0])


def test_scores_and_gains() -> None:
    def numbers(mean: float, **more: bool) -> dict:
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, **more}

    def score(mean: float) -> dict:
        return {"ndcg_at_10": numbers(mean), "recall_at_100": numbers(mean + 0.1)}

    pairs = [("new", "BM25", -0.005), ("new-hybrid", "BM25", 0.1), ("new-hybrid", "new", 0.105)]
    gains = [
        {"system": system, "baseline": baseline, "ndcg_at_10": numbers(mean, significant=mean > 0)}
        for system, baseline, mean in pairs
    ]
    scored = {"BM25": score(0.5), "new": score(0.495), "new-hybrid": score(0.6)}
    part = {"n": 30, "scores": scored, "differences": gains}
    results = {
        "systems": list(scored), "bases": {"new-hybrid": "new"},
        "tasks": {"城市": {"slices": {"all": part, "keyword": part}}},
    }  # fmt: skip
    table = text_table(Summary("t", "", "", {}, STAGES, evaluation=results))
    scores, gains = (block.splitlines() for block in table.split("\n\n")[1:])
    assert scores[1].split() == ["城市", "all", "30", "BM25", "50.0", "49.0", "to", "51.0", "60.0"]
    assert scores[2].split() == ["new", "49.5", "48.5", "to", "50.5", "59.5"]
    assert [line.split() for line in gains[1:]] == [
        "城市 all new − BM25 -0.5 -1.5 to +0.5 not significant".split(),
        "new-hybrid − new +10.5 +9.5 to +11.5".split(),
        "keyword new − BM25 -0.5 -1.5 to +0.5 not significant".split(),
    ]
