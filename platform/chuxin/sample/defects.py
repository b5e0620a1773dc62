"""What is planted in the made world, so that cleaning has something to find and its counts can be checked.

In raw text: `plant` turns a stream of clean pages into one in which every period of 1 / `planted_share`
pages carries each fault once. In pairs and pages: `leaks` copies parts of the benchmarks. Also the lines that
are no valid records. Every fault is counted under its name; leaves out where things are written (files.py).
"""

import functools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from chuxin.ids import match_key
from chuxin.sample.config import SampleConfig
from chuxin.sample.documents import Document
from chuxin.sample.queries import Benchmark
from chuxin.sample.world import draws

FULL_WIDTH = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(ord("0"), ord("9") + 1)})
HALF_WIDTH_MARKS = str.maketrans({"，": ",", "。": ". ", "：": ":", "；": "; ", "？": "?"})

# Characters outside U+4E00..U+9FA5 (extensions A to C, later additions): the plain text must keep them.
RARE_SENTENCES = (
    "门匾由乡贤王䶮与李㛃题写，落款处还有𠮷野二字。",
    "水槽边的牌子写着䲟鱼和䱗条，许多孩子念不出来。",
    "实验室的周期表上，鿏、鿔、鿭三格被人用红笔圈了出来。",
    "化学老师讲到𨧀、𨭎、𨨏、𨭆四种元素，黑板上写满了符号。",
    "登记册里最少见的地名是㙟村，姓氏里则有㑇和䣭。",
)
FOREIGN = (
    "The committee met on Tuesday and agreed to publish the figures for item {n}. Nobody wanted a vote.",
    "A short walk from the station there is a small museum; ticket {n} was sold to a man with a red hat.",
    "委員会は昨日、第{n}号の報告をまとめました。来週もう一度ひらかれる予定です。",
    "Комиссия рассмотрела заявку номер {n} и перенесла решение на следующую неделю. Подробностей нет.",
    "위원회는 어제 {n}번 안건을 검토했으며 다음 주에 다시 모이기로 했습니다. 자세한 내용은 없습니다.",
)
SHORT_LINES = ("首页", "登录", "注册", "下一页", "返回顶部", "更多>>", "分享到", "打印", "第{n}页", "客服")
CHAPTERS = ("总则", "概况", "数据来源", "方法说明", "结果", "讨论", "不足", "今后打算", "附表", "致谢")
NUMERALS = "一二三四五六七八九十"
STRAY = ("\u200b", "\ufeff", "\x07", "\x1b[0m", "\x00", "😀", "🔥🔥", "👍", "\u202e", "\x85")

RECENT = 24  # clean pages kept to copy from
LEAKED_QUERY_FORMS = ("query_exact", "query_punctuation", "query_width", "query_traditional")


class Leak(NamedTuple):
    """A part of a benchmark that was copied to where models train."""

    benchmark: str
    query_id: str
    corpus_id: str
    form: str
    query: str
    """The query of the pair it leaked to; for a leaked gold passage one that is no benchmark query."""
    gold: str

    def record(self) -> dict[str, str]:
        """What planted.json says of it."""
        return {
            "benchmark": self.benchmark, "query_id": self.query_id, "corpus_id": self.corpus_id,
            "form": self.form, "query": self.query,
        }  # fmt: skip


def plant(config: SampleConfig, clean: Iterable[Document]) -> Iterator[Document]:
    """The clean pages with the faults among them: some replace a page by a spoilt one, some add a page."""
    rng = draws(config.seed, "faults")
    period = max(round(1 / config.planted_share), len(FAULTS)) if config.planted_share > 0 else 0
    recent: list[Document] = []
    schedule: dict[int, str] = {}
    for number, page in enumerate(clean):
        if period and number % period == 0:
            schedule = dict(zip(rng.sample(range(period), len(FAULTS)), FAULTS, strict=True))
        fault = schedule.get(number % period, "") if period else ""
        if not fault:
            yield page
        else:
            make = FAULTS[fault]
            if make not in COPIES:
                yield make(rng, page, number)._replace(fault=fault)
                if make in ADDED:
                    yield page
            else:
                yield page
                yield make(rng, rng.choice(recent or [page]), number)._replace(fault=fault)
        if not fault or FAULTS[fault] in ADDED:
            recent = [*recent[-RECENT + 1 :], page]


def exact_duplicate(_: random.Random, page: Document, __: int) -> Document:
    """The page again, byte for byte."""
    return page


def width_duplicate(_: random.Random, page: Document, __: int) -> Document:
    """The page again with half-width marks and full-width digits: equal by its match key."""
    return page._replace(text=page.text.translate(FULL_WIDTH | HALF_WIDTH_MARKS))


def near_duplicate(rng: random.Random, page: Document, number: int) -> Document:
    """The page again with one sentence gone and a reprint note."""
    sentences = page.text.split("。")
    sentences.pop(rng.randrange(len(sentences) - 1))
    return page._replace(text=f"{'。'.join(sentences)}\n（转载第{number}号，版权归原作者）")


def traditional(_: random.Random, page: Document, __: int) -> Document:
    """The page in traditional characters."""
    return page._replace(title=_traditional(page.title), text=_traditional(page.text))


def mojibake_latin1(_: random.Random, page: Document, __: int) -> Document:
    """UTF-8 read as Latin-1."""
    return page._replace(text=page.text.encode().decode("latin-1"))


def mojibake_replaced(rng: random.Random, page: Document, _: int) -> Document:
    """A third of the characters lost to runs of U+FFFD."""
    text = page.text
    for _ in range(8):
        at = rng.randrange(len(text))
        size = max(len(text) // 24, 1)
        text = text[:at] + "\ufffd" * size + text[at + size :]
    return page._replace(text=text)


def mojibake_gbk(_: random.Random, page: Document, __: int) -> Document:
    """Replacement characters saved as UTF-8 and read as GBK, sentence by sentence."""
    lost = "".join("\ufffd\ufffd".encode().decode("gbk") if c not in "，。\n" else c for c in page.text[::3])
    return page._replace(text=lost)


def rare_han(rng: random.Random, page: Document, _: int) -> Document:
    """A sentence with rare characters in names or chemistry, at the end of the first paragraph."""
    first, *rest = page.text.split("\n")
    return page._replace(text="\n".join([first + rng.choice(RARE_SENTENCES), *rest]))


def contents(rng: random.Random, page: Document, _: int) -> Document:
    """A table of contents instead of text."""
    at = 1
    lines = [f"{page.title}目录"]
    for chapter in range(rng.randint(6, 10)):
        lines.append(f"第{NUMERALS[chapter]}章 {rng.choice(CHAPTERS)}{'…' * rng.randint(6, 14)}{at}")
        at += rng.randint(2, 19)
    return page._replace(text="\n".join(lines))


def stray_characters(rng: random.Random, page: Document, _: int) -> Document:
    """Control characters, invisible characters and emoji in the text."""
    text = page.text
    for stray in rng.sample(STRAY, 6):
        at = rng.randrange(len(text))
        text = text[:at] + stray + text[at:]
    return page._replace(text=text)


def short_lines(rng: random.Random, page: Document, number: int) -> Document:
    """A page of menu entries."""
    lines = rng.sample(SHORT_LINES, 6)
    return page._replace(text="\n".join([*lines, f"编号{number}"]).format(n=number))


def foreign(rng: random.Random, page: Document, number: int) -> Document:
    """A page in another language."""
    sentence = rng.choice(FOREIGN)
    return Document(f"No. {number}", " ".join(sentence.format(n=number * 10 + k) for k in range(3)))


FAULTS: dict[str, Callable[[random.Random, Document, int], Document]] = {
    function.__name__: function
    for function in (
        exact_duplicate, width_duplicate, near_duplicate, traditional, mojibake_latin1, mojibake_replaced,
        mojibake_gbk, rare_han, contents, stray_characters, short_lines, foreign,
    )
}  # fmt: skip
COPIES = (exact_duplicate, width_duplicate, near_duplicate)
ADDED = (*COPIES, mojibake_latin1, mojibake_replaced, mojibake_gbk, contents, short_lines, foreign)


def leaks(config: SampleConfig, benchmark: Benchmark) -> tuple[list[Leak], list[Leak]]:
    """Draws what leaks of a benchmark: to the pairs (queries, gold passages), and to raw pages."""
    rng = draws(config.seed, "leaks", benchmark.name)
    share = round(min(config.leaked_share, 1 / 4) * len(benchmark.queries))
    order = rng.sample(range(len(benchmark.queries)), len(benchmark.queries))
    pairs: list[Leak] = []
    for number in range(share):
        form = LEAKED_QUERY_FORMS[number % len(LEAKED_QUERY_FORMS)]
        place = next(p for p in order if form != "query_traditional" or _survives(benchmark.queries[p].text))
        order.remove(place)
        pairs.append(_leak(benchmark, place, form))
    pairs += [_leak(benchmark, place, "gold_pair") for place in order[:share]]
    pages = [_leak(benchmark, place, "gold_document") for place in order[share : 2 * share]]
    return pairs, pages


def disguise(form: str, query: str) -> str:
    """A leaked query as it stands in the pairs: equal to the benchmark's by match key, not by bytes."""
    if form == "query_punctuation":
        return f"“{query.rstrip('？')}”……！"
    if form == "query_width":
        return f" {query.translate(FULL_WIDTH | HALF_WIDTH_MARKS)} ？"
    if form == "query_traditional":
        return _traditional(query)
    return query


def malformed(number: int) -> bytes:
    """Line number `number` of those that are no valid record, without its newline."""
    lines: tuple[Any, ...] = (
        '{"title": "断行", "text": "这一行在写到一半时被截',
        "这一行不是 JSON，只是一句话。",
        '["是 JSON", "但不是对象"]',
        '{"title": "没有正文的记录", "score": 0.5}',
        '{"title": 1, "text": null, "query": 2, "pos": "不是列表"}',
        "{'单引号': '不是 JSON'}",
    )
    return lines[number % len(lines)].encode()


def _leak(benchmark: Benchmark, place: int, form: str) -> Leak:
    query, gold = benchmark.queries[place], benchmark.corpus_id(benchmark.gold[place])
    text = disguise(form, query.text)
    if form not in LEAKED_QUERY_FORMS:
        subject = query.passage.entity
        text = f"{subject.name}的{subject.domain.topics[query.passage.topic].name}有什么资料"
    return Leak(benchmark.name, benchmark.query_id(place), gold, form, text, query.passage.text)


def _survives(text: str) -> bool:
    """True if the text's traditional form differs from it and has the same match key."""
    written = _traditional(text)
    return written != text and match_key(written) == match_key(text)


@functools.cache
def _converter() -> Callable[[str], str]:
    import opencc

    return opencc.OpenCC("s2t").convert


def _traditional(text: str) -> str:
    return _converter()(text)
