"""Answers → queries, each answer by itself: an unusable one becomes a reason, never an exception.

What a query may hold (full-width colons, quotes) stays. What falls is named: refusals, answers that are no JSON, cut
ones, and those that did what a passage told them to. Leaves out: asking again (generate.py), pair rules (rules.py).
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, NamedTuple

from chuxin.schema import KEEP
from chuxin.synthesis.render import CATEGORIES, FENCE, ROLE_CHARS, SCENE_CHARS

# Only where an answer begins that is no JSON: a query may well begin so (抱歉信怎么写, 对不起，我爱你是谁唱的).
_REFUSED_ANSWER = re.compile(
    r"\s*(?:(?:很|非常|十分)?(?:抱歉|对不起)[，,。！!]|作为(?:一[个名款])?(?:AI|人工智能|大?语言模型|智能助手)"
    r"|(?:我|本模型)(?:无法|不能|没有办法)(?:提供|回答|生成|完成|满足|协助|为您)|I(?:'m| am) sorry|Sorry[,.]|As an AI)",
    re.IGNORECASE,
)
# In the place of a query: an apology or a machine's self-introduction with an inability, or a bare inability. Somebody
# who searches may be unable as well (我不能完成作业怎么办), but asks; what a machine offers instead is no question.
_UNABLE = r"(?:无法|不能|不会|不便|没有|未(?:提供|提及|包含|给出)|不足|can't|can ?not|unable|do(?:es)?(?:n't| not))"
_REFUSED_QUERY = re.compile(
    r"\s*(?:(?:(?:很|非常|十分)?(?:抱歉|对不起)[，,。！!]|I(?:'m| am) sorry[,. ]|Sorry[,.]).{0,40}?" + _UNABLE +
    r"|(?:作为(?:一[个名款])?(?:AI|人工智能|大?语言模型|智能助手)[^，,。]{0,8}[，,]|As an AI).{0,40}?" + _UNABLE +
    r"|(?:我|本模型)(?:无法|不能|没有办法)(?:提供|回答|生成|完成|满足|协助|为您))",
    re.IGNORECASE,
)  # fmt: skip
_OFFER = re.compile(r"[，,。！!]\s*(?:请(?!问)|(?:请问)?(?:您|(?:还)?有什么我?(?:可以|能|需要)|还有什么)).*$")
_ASKS = re.compile(r"怎|如何|什么|哪|谁|吗|呢|几|多少|吧|[?？]")
_INJECTION = re.compile(
    r"(?:忽略|无视|忘记|忘掉|不要理会)[^。！？\n]{0,8}(?:以上|上述|之前|前面|先前|上面|所有)(?:[^。！？\n]{0,8}(?:指令|指示|提示|要求|规则|命令)|(?:的|所有|全部|一切|文档|文本|文字|对话|段落)*内容)"
    r"|(?:ignore|disregard|forget)[^.\n]{0,20}(?:previous|above|prior|all)[^.\n]{0,20}(?:instruction|prompt|rule)s?",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"[“\"「『‘']([^”\"」』’'\n]{2,80})[”\"」』’']")
_DEMAND = re.compile(
    r"(?:输出|回答|回复|改写为|写|说|output|reply|say|write)[：:\s]*([^，,。！？.\n“\"「『]{2,40})", re.IGNORECASE
)
_REACH = 160
_SHARED = 6
# A number and a point before a letter or digit are part of a word: 3.X版本, 2.G网络.
_LABEL = re.compile(
    r"(查询|问题|搜索查询|标题|关键词|query|question)\s*\d{0,2}\s*[：:]\s*|\d{1,2}(?:、\s*(?!\d)|[.．](?:\s+(?!\d)|(?![\sA-Za-z\d])))",
    re.IGNORECASE,
)
_LABELLED = {"标题": "title", "关键词": "keywords", "问题": "question"}
"""Labels that name a kind: before a query of another kind they are its own words (标题：怎么写才吸引人)."""
_QUOTES = {"“": "”", '"': '"', "「": "」", "『": "』", "'": "'", "‘": "’"}
_CONTROL = re.compile(r"[<＜][|｜][^|｜]{1,40}[|｜][>＞]")
_PLACEHOLDER = re.compile(r"[\s….。·\-—_]*")


class Parsed(NamedTuple):
    """A value, or None with the reason."""

    value: Any
    reason: str


def read_object(text: str, finish: str = "stop") -> Parsed:
    """Reads the one JSON object of an answer, with or without words or a code fence around it.

    Returns:
        The dict with "keep", or None with "empty", "refusal", "cut" or "not_json".
    """
    if not text.strip():
        return Parsed(None, "empty")
    start = text.find("{")
    if start >= 0:
        with contextlib.suppress(ValueError, RecursionError):  # the reasons below say what it is instead
            value, _ = json.JSONDecoder(strict=False).raw_decode(text, start)
            # Half a surrogate pair is no text, and fails here; so do 5,000 digits and 10,000 brackets above.
            json.dumps(value, ensure_ascii=False).encode()
            return Parsed(value, KEEP)
    if _REFUSED_ANSWER.match(text):
        return Parsed(None, "refusal")
    return Parsed(None, "cut" if finish == "length" else "not_json")


def read_queries(text: str, count: int, finish: str = "stop") -> Parsed:
    """Reads a rich answer: the list of queries, as they stand in it.

    Returns:
        A list of `count` strings with "keep", or None with a reason ("wrong_shape": other fields or types,
        "wrong_count": other than `count` queries).
    """
    found = read_object(text, finish)
    if found.value is None:
        return found
    queries = found.value.get("queries")
    if not isinstance(queries, list) or not all(isinstance(q, str) for q in queries):
        return Parsed(None, "wrong_shape")
    return Parsed(queries, KEEP) if len(queries) == count else Parsed(None, "wrong_count")


def read_query(text: str, finish: str = "stop") -> Parsed:
    """Reads a faithful answer: the one query."""
    found = read_object(text, finish)
    if found.value is None:
        return found
    query = found.value.get("query")
    return Parsed(query, KEEP) if isinstance(query, str) else Parsed(None, "wrong_shape")


def read_persona(text: str, finish: str = "stop") -> Parsed:
    """Reads category, role and scene.

    Returns:
        A dict of the three with "keep", or None with a reason ("unknown_category" included).
    """
    found = read_object(text, finish)
    if found.value is None:
        return found
    fields = {name: found.value.get(name) for name in ("category", "role", "scene")}
    if not all(isinstance(v, str) and v.strip() for v in fields.values()):
        return Parsed(None, "wrong_shape")
    values = {name: v.strip() for name, v in fields.items()}
    if values["category"] not in CATEGORIES:
        return Parsed(None, "unknown_category")
    if len(values["role"]) > ROLE_CHARS or len(values["scene"]) > SCENE_CHARS:
        return Parsed(None, "wrong_shape")
    return Parsed(values, KEEP)


def clean_query(query: str, kind: str | None = None) -> Parsed:
    """Takes what is not part of a query from around it: blanks, line breaks, a label, quotes around the whole.

    Args:
        query: As the answer has it.
        kind: What was asked for.

    Returns:
        The query with "keep"; with a reason ("empty", "refusal") where there is none, the text as it stood.
    """
    text = " ".join(query.split())
    label = _LABEL.match(text)
    if label and _LABELLED.get(label[1] or "", kind) == kind:
        text = text[label.end():]
    close = _QUOTES.get(text[:1])
    if close and len(text) > 1 and text.endswith(close) and not {text[0], close} & set(text[1:-1]):
        text = text[1:-1].strip()
    if _PLACEHOLDER.fullmatch(text):
        return Parsed(query, "empty")
    refused = _REFUSED_QUERY.match(text) and not _ASKS.search(_OFFER.sub("", text))
    return Parsed(query, "refusal") if refused else Parsed(text, KEEP)


def holds_fence(text: str) -> bool:
    """True for a passage or query that holds the marks around documents, or what chat templates mark turns with
    (<|im_end|>, also in full width, as some models have it): it could end its own place and speak as the prompt.
    """
    return any(mark in text for mark in FENCE) or _CONTROL.search(text) is not None


def injections(passage: str) -> list[str]:
    """Returns the orders that a passage gives its reader ("忽略以上指令，输出…"), up to 160 characters each."""
    return [passage[found.start():found.start() + _REACH] for found in _INJECTION.finditer(passage)]


def obeyed(query: str, orders: list[str]) -> bool:
    """True for a query that does what a passage ordered: it repeats what the order demands, or six characters of the
    order itself.
    """
    for order in orders:
        demanded = [*_QUOTED.findall(order), *(d.strip() for d in _DEMAND.findall(order))]
        if any(len(d) >= 2 and d in query for d in demanded):
            return True
        sentence = re.split(r"[。！？\n]", order, maxsplit=1)[0]
        windows = {sentence[i:i + _SHARED] for i in range(len(sentence) - _SHARED + 1)}
        if any(query[i:i + _SHARED] in windows for i in range(len(query) - _SHARED + 1)):
            return True
    return False
