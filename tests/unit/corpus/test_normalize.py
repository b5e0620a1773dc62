"""normalize.py and characters.py: idempotent, keeps what carries meaning, linear in the worst case."""

import random
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chuxin.corpus import characters as ch
from chuxin.corpus.config import NormalizeConfig
from chuxin.corpus.normalize import normalize, normalize_line

ALL = NormalizeConfig()
PLAIN = NormalizeConfig(strip_html=False, strip_emoji=False, simplify=False)

# What the steps react to, and how they might feed each other.
PIECES = st.sampled_from([
    "乾", "縣", "隆", "於", "則", "麼", "計", "貲", "不可", "蘇", "苏", "台", "臺", "著", "薴", "苧", "王",
    "昇", "<", ">", "</", "/>", "<p>", "<b", "br", "<!--", "-->", "<script>", "</script>", "&", "amp;",
    "lt;", "gt;", "&#60;", "&#x3c;", "&nbsp;", "#", "60;", "＆", "ｌｔ", ";", "ﾊ", "ﾞ", "e", "\u0301",
    "\u200b", "\u200d", "\ufeff", "\x00", "\x1b[0m", "\x1b", "[", "m", "\r", "\n", "\r\n", "\x85", "\u2028",
    " ", "\t", "\u3000", "\xa0", "\u2000", "\u2001", "😀", "👨\u200d👩", "\ufe0f", "１", "Ａ", "，", "：",
    "\u212b", "\u037e", "\u1fef", "\uf900", "\ufa0e", "\U0002f800", "\u2f00", "²", "①", "ﬃ", "𝐀", "\ud800",
    "\U000e0100", "中", "文",
])


@settings(max_examples=200)
@given(st.one_of(st.lists(PIECES, max_size=24).map("".join), st.text(max_size=40)))
@example("乾縣")
@example("不可貲計")
@example("&amp;amp;lt;p&amp;gt;")
@example("<scr<b>ipt>x</script>")
@example("\x1b\x1b[0m[0m")
def test_normalising_twice_changes_nothing(text: str) -> None:
    for config in (ALL, PLAIN):
        once = normalize(text, config)
        assert normalize(once, config) == once
        line = normalize_line(text, config)
        assert normalize_line(line, config) == line and "\n" not in line


def test_no_han_character_of_any_plane_is_lost() -> None:
    for first, last in ch.HAN_RANGES:
        text = "".join(map(chr, range(first, last + 1)))
        kept = normalize(text, PLAIN)
        assert kept == unicodedata.normalize("NFC", text) or len(kept) == len(text)
        assert len(normalize(text, ALL)) == len(text)
    for rare in ("𠮷野家", "㐂久", "鿏", "䶮", "王𬎆", "𪚥", "〇一々"):
        assert normalize(rare, ALL) == rare


@pytest.mark.parametrize(("raw", "clean"), [
    ("ｕｆａｃｅ和uface都在", "uface和uface都在"),  # a published script's escape pattern deleted it
    ("问题：什么：答案：全部留下", "问题：什么：答案：全部留下"),  # and kept only what follows the last colon
    ("１２３ＡＢＣ％", "123ABC%"), ("，。！？；（）～", "，。！？；（）～"), ("10²㎡½①", "10²㎡½①"),
    ("ﾊﾞｽ", "バス"), ("\u2f00\u2fd5", "一龠"), ("a\u3000\u3000b\tc", "a b c"),
    ("a \r\n b\r\n\r\n\r\n\r\nc ", "a\nb\n\nc"), ("行一\u2028行二\x0b行三", "行一\n行二\n行三"),
    ("零\u200b宽\ufeff和\x00控\x1b[31m制\u202e", "零宽和控制"), ("好👍🏽评👨\u200d👩\u200d👧★", "好评★"),
    ("漢語與繁體字", "汉语与繁体字"), ("乾隆年間的乾燥天氣", "乾隆年间的干燥天气"),
    ("宫商角徵羽，瞭望塔，樊於期，王昇", "宫商角徵羽，瞭望塔，樊於期，王昇"),  # simplified text as it should be
    ("<p>第一段</p><p>第<b>二</b>段<br/>行</p>", "第一段\n\n第二段\n行"),
    ("<div class='a'>文</div><!-- 注 --><script>x<1</script><STYLE>p{}</STYLE>尾", "文\n\n尾"),
    ("1 < 2，a<b且c>d", "1 < 2，a<b且c>d"), ("<篇名>黄芪汤", "<篇名>黄芪汤"), ("用<name>占位", "用<name>占位"),
    ("A&amp;B&nbsp;&lt;3&#20013;&#x6587;&unknown;&copy=1", "A&B <3中文&unknown;&copy=1"),
    ("&lt;p&gt;双重&lt;/p&gt;", "双重"), ("<!-- 没有结尾 <b>粗</b>", "<!-- 没有结尾 粗"),
])
def test_examples(raw: str, clean: str) -> None:
    assert normalize(raw, ALL) == clean


def test_each_switch_turns_one_thing_off() -> None:
    raw = "<b>漢</b>😀"
    assert normalize(raw, NormalizeConfig(strip_html=False)) == "<b>汉</b>"
    assert normalize(raw, NormalizeConfig(simplify=False)) == "漢"
    assert normalize(raw, NormalizeConfig(strip_emoji=False)) == "汉😀"


@pytest.mark.parametrize("attack", [
    "<!--", "<script>", "<p ", "<", "&", "&amp;", "&#", "<b>", "\x1b[", "<p><!--", " \n", "\u200b \n", "ﾊﾞ",
])
def test_long_runs_cost_linear_time(attack: str) -> None:
    text = attack * (60_000 // len(attack))
    started = time.process_time()
    normalize(text, ALL)
    assert time.process_time() - started < 2


def test_the_table_agrees_with_the_patterns() -> None:
    rng = random.Random(0)
    pool = [chr(c) for ranges in (ch.FOLD_RANGES, ch.DROP_RANGES, ch.EMOJI_RANGES, ch.HAN_RANGES) for pair in ranges
            for c in (*pair, pair[0] - 1 if pair[0] else 0, pair[1] + 1)]
    text = "".join(rng.sample(pool, len(pool)))
    flags = ch.table()[ch.code_points(text)]
    for flag, ranges in ((ch.FOLD, ch.FOLD_RANGES), (ch.DROP, ch.DROP_RANGES), (ch.EMOJI, ch.EMOJI_RANGES),
                         (ch.HAN, ch.HAN_RANGES)):
        matched = sum(len(run) for run in ch.pattern(ranges).findall(text))
        assert matched == (flags & flag > 0).sum()


def test_emoji_ranges_are_unicode_symbols_and_no_text() -> None:
    categories = {unicodedata.category(chr(c)) for a, b in ch.EMOJI_RANGES for c in range(a, b + 1)}
    assert categories <= {"So", "Sm", "Sk", "Me", "Cn"}


def test_traditional_only_characters_never_occur_in_converted_text() -> None:
    own = list(map(chr, np.flatnonzero(ch.table() & ch.TRADITIONAL)))
    assert 4000 < len(own) < 6000
    converted = ch.simplify("".join(own))
    assert not set(converted) & set(own)
