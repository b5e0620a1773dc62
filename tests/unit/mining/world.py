"""What the tests of mining share: rows, and stages run in this process."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chuxin.artifacts import Artifact
from chuxin.ids import text_hash
from chuxin.runner import Context
from chuxin.schema import CANDIDATE, CANDIDATES
from chuxin.search.store import Chunk, PassageStore, write_shard

from ..here import HereDraft

WHO, WHERE = ("老师", "医生", "学生", "记者", "工人", "农民"), ("北京", "上海", "广州", "成都")
WHAT = ("学习做菜", "参观博物馆", "修理自行车", "写一篇文章")


def run(
    folder: Path | str, name: str, stage: Callable, config: Any, inputs: Mapping[str, Artifact] | None = None
) -> Artifact:
    """Runs a stage into `folder`/`name`."""
    draft = HereDraft(f"{folder}/{name}", name * 4, {}, print)
    stage(Context(name, draft, dict(inputs or {}), print), config)
    return draft.close()


def passage(number: int, text: str, score: float | None = None) -> dict[str, Any]:
    """A row of schema.PASSAGE."""
    return {"passage_id": number, "text": text, "text_hash": text_hash(text), "score": score}


def group(number: int, query: str, positives: list[dict], negatives: list[dict], **changes: Any) -> dict[str, Any]:
    """A row of schema.GROUPS."""
    return {"query_id": number, "query": query, "query_hash": text_hash(query), "positives": positives,
            "negatives": negatives, "source": "labelled", "status": "keep",
            "lineage": {"file": "f", "position": number, "passage_id": None}} | changes  # fmt: skip


def corpus() -> list[dict[str, Any]]:
    """96 texts; ids 500 to 503 repeat texts of 0 to 3, and 510 fell earlier."""
    texts = [f"{who}在{where}{what}。" for who in WHO for where in WHERE for what in WHAT]
    rows = [(i, text, "keep") for i, text in enumerate(texts)]
    rows += [(500 + i, texts[i], "keep") for i in range(4)] + [(510, "广告联系电话", "short")]
    return [{"passage_id": i, "document_id": i, "source": "s", "text": text, "text_hash": text_hash(text),
             "status": status} for i, text, status in rows]  # fmt: skip


def candidate(number: int, **values: Any) -> dict[str, Any]:
    """A row of schema.CANDIDATE: passage `number`, its text "p<number>", what is not named is null."""
    empty = dict.fromkeys(field.name for field in CANDIDATE)
    return {**empty, "passage_id": number, "text_hash": text_hash(f"p{number}"), "given": False} | values


def candidates_table(rows: list[dict[str, Any]]) -> pa.Table:
    """A table of CANDIDATES from rows of `group` with a list `candidates`."""
    return pa.Table.from_pylist([{k: v for k, v in row.items() if k != "status"} for row in rows], CANDIDATES)


def store(folder: Path, numbers: list[int], shards: int = 2) -> PassageStore:
    """A store of the texts "p<number>", with vectors that mean nothing."""
    paths = []
    for index in range(shards):
        own = numbers[index::shards]
        texts = [f"p{number}" for number in own]
        paths.append(str(folder / f"shard-{index}"))
        chunk = Chunk(texts, np.full((len(own), 4), 0.5), {})
        hashes = np.array([text_hash(text) for text in texts])
        write_shard(paths[-1], np.array(own), hashes, 4, [chunk], 10)
    return PassageStore(paths)
