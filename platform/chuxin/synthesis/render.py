"""Prompts: package files filled in with a passage and what is asked, and the JSON schema of each answer.

The document stands first in every prompt that shows one, behind the same words, so all calls of a row share their
prefix and an engine computes it once. Leaves out: sending (llm.py), reading answers (parse.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal, NamedTuple, get_args

import xxhash

Kind = Literal["question", "keywords", "title", "claim", "colloquial", "product"]
Difficulty = Literal["easy", "medium", "hard"]
Length = Literal["short", "medium", "long"]
Criterion = Literal["standalone", "searchable", "single_intent", "answered"]

KINDS: dict[Kind, str] = {
    "question": "问题", "keywords": "关键词", "title": "标题", "claim": "论断", "colloquial": "口语", "product": "商品",
}  # fmt: skip
"""The forms of a query and how a prompt names them."""

DIFFICULTIES: dict[Difficulty, str] = {"easy": "易", "medium": "中", "hard": "难"}
"""Easy uses the document's words; hard describes what it means in others."""

LENGTHS: dict[Length, tuple[str, int, int]] = {"short": ("短", 2, 10), "medium": ("中", 11, 20), "long": ("长", 21, 63)}
"""The name in a prompt, and the characters that count as such (both ends included)."""

CATEGORIES: dict[str, Kind] = {
    "金融": "question", "实体": "question", "医疗": "colloquial", "政策": "question", "科学": "claim", "论文": "title",
    "百科": "question", "影视": "colloquial", "气候": "claim", "疫情": "question", "网页": "keywords",
    "电商": "product", "医药": "question", "新闻": "title", "其他": "question",
}  # fmt: skip
"""The published fifteen categories, and the form of query that each asks for."""

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
"""Prompts of the judge that answer yes or no about a query."""

YES, NO = "是", "否"
"""The verdict's choices; each has to be one token of the LLM."""

FENCE = ("【文档】", "【文档完】")
"""What stands around a document; a document that holds one of them is not shown to an LLM."""

QUERY_CHARS = (2, 63)
"""Fewest and most characters of a query (the published rule)."""

ROLE_CHARS, SCENE_CHARS = 12, 10
"""Most characters of a role (ours) and of a scene (published)."""

_FIELD = re.compile(r"\{([a-z]+)\}")


class Ask(NamedTuple):
    """What one query of a rich call shall be."""

    kind: Kind
    difficulty: Difficulty
    length: Length


PROMPTS = {"rich": ("rich",), "faithful": ("persona", "query")}
"""The prompt files of each mode of writing."""

DOCUMENT_PROMPTS = ("persona", "query", "rich", "gate", "answered")
"""Prompts that show a document; the others show a query alone."""


@functools.cache
def template(name: str) -> str:
    """Returns a prompt's file, without the newline at its end."""
    file = resources.files("chuxin.synthesis").joinpath("prompts", f"{name}.txt")
    return file.read_text(encoding="utf-8").rstrip("\n")


def prompt_hash(*names: str) -> str:
    """Returns 16 hex digits that change with the prompts' files."""
    return xxhash.xxh3_64_hexdigest("\x1f".join(map(template, names)).encode())


def render(name: str, passage: str = "", **fields: str | int) -> list[dict[str, str]]:
    """Fills a prompt in, in one pass: braces inside a passage or query stay as they are.

    Args:
        name: A file of prompts/, without its ending.
        passage: The document, whole: nothing is cut here.
        **fields: The prompt's other fields.

    Returns:
        Chat messages: one of the user, no system message.

    Raises:
        KeyError: The prompt has a field that is not given.
    """
    values = {"passage": passage, **fields}
    content = _FIELD.sub(lambda found: str(values[found[1]]), template(name))
    return [{"role": "user", "content": content}]


def describe(asks: Sequence[Ask]) -> str:
    """Returns the list of asks as the rich prompt shows it: "1.问题，易，短；2.标题，难，长"."""
    return "；".join(
        f"{i}.{KINDS[a.kind]}，{DIFFICULTIES[a.difficulty]}，{LENGTHS[a.length][0]}" for i, a in enumerate(asks, 1)
    )


def persona_schema() -> dict[str, Any]:
    """JSON schema of the first faithful call's answer."""
    return _object(category={"type": "string", "enum": list(CATEGORIES)}, role=_text(1, ROLE_CHARS),
                   scene=_text(1, SCENE_CHARS))  # fmt: skip


def query_schema() -> dict[str, Any]:
    """JSON schema of the second faithful call's answer."""
    return _object(query=_text(*QUERY_CHARS))


def rich_schema(count: int) -> dict[str, Any]:
    """JSON schema of the rich call's answer: exactly so many queries, in the order they were asked for."""
    return _object(queries={"type": "array", "items": _text(*QUERY_CHARS), "minItems": count, "maxItems": count})


def _text(least: int, most: int) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
