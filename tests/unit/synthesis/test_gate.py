"""The gate learns what the LLM said, keeps the recall it was asked for, and knows when there is nothing to learn."""

import random
from pathlib import Path

import numpy as np
import pytest

from chuxin.schema import KEEP
from chuxin.synthesis.gate import FALLEN, fit, load, save, score, statuses


def texts(n: int) -> tuple[list[str], np.ndarray]:
    rng = random.Random(3)
    good = ["公司成立于二〇一二年，产品是手机。", "该病的症状包括发热与咳嗽。", "省会位于盆地，气候温和。"]
    bad = ["首页 登录 注册 返回顶部", "点击查看更多 分享到", "版权所有 违者必究"]
    labels = np.array([rng.random() < 0.6 for _ in range(n)])
    made = [rng.choice(good if y else bad) + "".join(rng.choices("天地玄黄宇宙洪荒", k=8)) for y in labels]
    return made, np.where(labels, 0.9, 0.1)


def test_the_gate_learns_the_llms_verdicts() -> None:
    made, labels = texts(400)
    gate = fit(made[:300], labels[:300], 1, 0.25, 0.95)
    kept = [s == KEEP for s in statuses(gate, score(gate, made[300:]), [KEEP] * 100)]
    right = np.mean(np.array(kept) == (labels[300:] > 0.5))
    assert right > 0.9 and gate.facts["recall"] >= 0.95 and gate.facts["labels"] == 300


@pytest.mark.parametrize("recall", [0.5, 0.8, 1.0])
def test_the_threshold_keeps_the_recall_asked_for(recall: float) -> None:
    made, labels = texts(300)
    noise = np.random.default_rng(0).random(300) < 0.2
    labels = np.where(noise, 1 - labels, labels)
    assert fit(made, labels, 1, 0.4, recall).facts["recall"] >= recall


@pytest.mark.parametrize(("said", "status"), [(0.9, KEEP), (0.1, FALLEN)])
def test_one_answer_for_all_teaches_nothing(said: float, status: str) -> None:
    gate = fit(["甲", "乙", "丙"], np.full(3, said), 1, 0.25, 0.95)
    assert statuses(gate, score(gate, ["丁"]), [KEEP]) == [status] and gate.facts["yes_share"] in (0.0, 1.0)


def test_few_labels_do(tmp_path: Path) -> None:
    gate = fit(["好文章", "坏"] * 4, np.array([0.9, 0.1] * 4), 1, 0.25, 0.95)
    save(gate, str(tmp_path / "gate.npz"))
    again = load(str(tmp_path / "gate.npz"))
    assert np.array_equal(score(again, ["好文章", "坏", "乱"]), score(gate, ["好文章", "坏", "乱"]))
    assert statuses(again, score(again, ["好文章", "坏"]), [KEEP, KEEP]) == [KEEP, FALLEN]
    assert statuses(again, np.float32([1]), ["duplicate"]) == ["duplicate"] and len(score(gate, [])) == 0
