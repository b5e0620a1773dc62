"""filters.py and contents.py: measures against naive counts, reasons on real kinds of text."""

import random
import time

import numpy as np
import pytest

from chuxin.corpus.characters import code_points
from chuxin.corpus.config import FilterConfig, NormalizeConfig
from chuxin.corpus.contents import contents_share, menu_share
from chuxin.corpus.filters import measure, repeat_share, status, window_hashes
from chuxin.corpus.normalize import normalize

PROSE = (
    "这座小城沿河而建，老街的石板路被雨水磨得发亮。清早卖豆腐的人推着车子走过桥头，吆喝声一直传到对岸。"
    "河边的茶馆开了三代人，掌柜记得每位老客的口味。到了秋天，柿子挂满枝头，孩子们放学后总要绕路去看一眼。"
)
ON_ONE_LINE = "目录 " + " ".join(f"{i}.{j} 某个标题 ........ {i * j}" for i in (1, 2) for j in range(1, 6))
CONTENTS = "\n".join(f"第{n}章 河流的第{n}个故事{'…' * 8}{7 * i + 1}" for i, n in enumerate("一二三四五六七"))


def test_repeat_share_against_counting_slices() -> None:
    rng = random.Random(0)
    for size in (0, 3, 4, 5, 30, 300):
        text = "".join(rng.choice("甲乙丙𠮷") for _ in range(size))
        grams = [text[i:i + 4] for i in range(size - 3)]
        expected = 1 - len(set(grams)) / len(grams) if size > 4 else 0.0
        assert repeat_share(code_points(text)) == pytest.approx(expected)


@pytest.mark.parametrize("width", [2, 4, 16])
def test_window_hashes_are_equal_exactly_where_windows_are(width: int) -> None:
    rng = random.Random(1)
    text = "".join(rng.choice("ab中文𠮷") for _ in range(2000))
    hashes = window_hashes(code_points(text), width)
    windows = [text[i:i + width] for i in range(len(text) - width + 1)]
    assert len(hashes) == len(windows)
    assert len(set(zip(windows, hashes.tolist(), strict=True))) == len(set(windows)) == len(np.unique(hashes))


@pytest.mark.parametrize(("text", "reason"), [
    (PROSE, "keep"), (PROSE[:10], "too_short"), ("", "too_short"), (CONTENTS, "table_of_contents"),
    (ON_ONE_LINE, "table_of_contents"),
    ("第一条 总则" * 40, "repetitive"), ("好" * 100, "repetitive"), ("-" * 200, "not_chinese"),
    ("首页\n登录\n下一页\n更多>>\n收藏\n编号497\n返回顶部", "menu"),
    ("for (int i = 0; i < size; ++i) { total += values[i]; }  // 累加", "not_chinese"),
    ("委員会は昨日、第九号の報告をまとめました。来週もう一度ひらかれる予定です。", "not_chinese"),
    (PROSE.encode().decode("latin-1"), "mojibake"), (PROSE.encode().decode("cp1252", "replace"), "mojibake"),
    (PROSE.encode().decode("gbk", "ignore"), "mojibake"), (PROSE.encode("gbk").decode("latin-1"), "mojibake"),
    (PROSE.encode("gbk").decode("utf-8", "replace"), "mojibake"),
    ("\ufffd\ufffd".encode().decode("gbk") * 20, "mojibake"),
    ("气温25°C，误差±0.5，比例3×4÷2，约占§3的一半·完", "keep"),
])
def test_reasons(text: str, reason: str) -> None:
    assert status(measure(normalize(text, NormalizeConfig())), FilterConfig()) == reason


def test_a_threshold_can_change_without_measuring_anew() -> None:
    measures = measure(PROSE)
    assert measures.n_chars == len(PROSE)
    assert measures.han_share == pytest.approx(sum("\u4e00" <= c <= "\u9fff" for c in PROSE) / len(PROSE))
    assert status(measures, FilterConfig(min_han_share=0.99)) == "not_chinese"
    assert status(measures, FilterConfig(min_chars=1000)) == "too_short"


@pytest.mark.parametrize("text", [
    PROSE, "价格是……3000元，后来……2000元，最后……1000元。" + PROSE * 3,
    "第一章 总则\n" + PROSE + "\n第二章 职责\n" + PROSE + "\n第三章 附则\n" + PROSE,
    "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。", "1. 先把水烧开\n2. 再放入面条\n3. 煮 5 分钟\n4. 盛出即可",
])
def test_prose_headings_and_lists_are_no_contents(text: str) -> None:
    assert contents_share(text) < 0.5 and menu_share(text) < 0.5


@pytest.mark.parametrize("attack", [".", "…", ". ", ".1", "第", "1.", "1. ", "\n", "第一章\n"])
def test_contents_in_linear_time(attack: str) -> None:
    started = time.process_time()
    contents_share(attack * (60_000 // len(attack)))
    assert time.process_time() - started < 2
