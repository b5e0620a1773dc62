"""Writes the made world in the layouts of the public files it stands for.

    raw/chinesewebtext/part-00000.jsonl, part-00001.jsonl.gz …   title, score, text, url, source_domain
    raw/wudao/part-00000.json …          ONE JSON array of id, uniqueKey, titleUkey, dataType, title, content
    raw/mtp/part-00000.jsonl …           query, pos, neg (lists of texts)
    benchmarks/NAME/corpus.jsonl, queries.jsonl, qrels/test.tsv  BEIR
    planted.json                         counts: how often each fault was planted; leaks: one by one

Memory does not grow with the world: pages and pairs are generated and written one by one.
"""

import gzip
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import orjson

from chuxin.ids import hash63
from chuxin.sample.config import SampleConfig
from chuxin.sample.defects import Leak, leaks, malformed, plant
from chuxin.sample.documents import Document, documents
from chuxin.sample.queries import Benchmark, Query, benchmark, training_queries
from chuxin.sample.world import BENCHMARKS, Passage, draws, training_world

SIZES = ("documents", "pairs", "passages", "files", "benchmark_passages", "benchmark_queries")
"""What `write_world` counts beside the planted faults."""

PAGES_A_LEAK = 8
PAIRS_A_LEAK = 20
RECORDS_A_MALFORMED_LINE = 5


class Parts:
    """Numbered files of at most `size` records: JSON lines (one in four gzipped, by wish) or JSON arrays."""

    def __init__(self, directory: Path, size: int, suffix: str, gzipped: bool = False) -> None:
        self.directory, self.size, self.suffix, self.gzipped = directory, size, suffix, gzipped
        self.array = suffix == ".json"
        self.files = self.records = 0
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record, to the next file where this one is full."""
        if self.records % self.size == 0:
            self._open()
        elif self.array:
            self._line(b",")
        self._line(orjson.dumps(record) + (b"" if self.array else b"\n"))
        self.records += 1

    def write_malformed(self, line: bytes) -> None:
        """Writes a line that is no record; the current file must be JSON lines."""
        self._line(line + b"\n")

    def close(self) -> None:
        """Closes the last file."""
        if self._file and self.array:
            self._line(b"]\n")
        self._stack.close()
        self._file = None

    def _open(self) -> None:
        self.close()
        self.directory.mkdir(parents=True, exist_ok=True)
        packed = self.gzipped and self.files % 4 == 1
        path = self.directory / f"part-{self.files:05d}{self.suffix}{'.gz' if packed else ''}"
        plain = self._stack.enter_context(path.open("wb"))
        # No name and no time in the header: the same world gives the same bytes.
        self._file = (
            self._stack.enter_context(gzip.GzipFile("", "wb", 6, plain, mtime=0)) if packed else plain
        )
        self.files += 1
        if self.array:
            self._line(b"[")

    def _line(self, data: bytes) -> None:
        if self._file is None:
            raise RuntimeError(f"{self.directory}: a line was written before the first record")
        self._file.write(data)


def write_world(directory: str | Path, config: SampleConfig) -> dict[str, int]:
    """Writes a whole world.

    Args:
        directory: Local directory, empty or new.
        config: The world; the same config gives the same bytes.

    Returns:
        Counts: the SIZES, and how often each fault was planted, under its name.
    """
    root = Path(directory)
    benchmarks = [benchmark(config, name) for name in BENCHMARKS]
    in_pairs: list[Leak] = []
    in_pages: list[Leak] = []
    counts: Counter[str] = Counter()
    for held_out in benchmarks:
        write_benchmark(root / "benchmarks" / held_out.name, held_out)
        counts["benchmark_passages"] += len(held_out.corpus)
        counts["benchmark_queries"] += len(held_out.queries)
        pairs, pages = leaks(config, held_out)
        in_pairs += pairs
        in_pages += pages
    planted: Counter[str] = Counter(leak.form for leak in (*in_pairs, *in_pages))
    counts += _write_pages(root / "raw", config, in_pages, planted)
    counts += _write_pairs(root / "raw" / "mtp", config, in_pairs, planted)
    faults = dict(sorted(planted.items()))
    record = {"counts": faults, "leaks": [leak.record() for leak in (*in_pairs, *in_pages)]}
    (root / "planted.json").write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))
    return {**{name: counts[name] for name in SIZES}, **faults}


def write_benchmark(directory: Path, held_out: Benchmark) -> None:
    """Writes a benchmark in BEIR's layout; a query's metadata holds its kind and domain."""
    (directory / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = (
        {"_id": held_out.corpus_id(place), "title": passage.title, "text": passage.text}
        for place, passage in enumerate(held_out.corpus)
    )
    queries = (
        {
            "_id": held_out.query_id(place),
            "text": query.text,
            "metadata": {"kind": query.kind, "domain": query.passage.entity.domain.key},
        }
        for place, query in enumerate(held_out.queries)
    )
    for name, records in (("corpus", corpus), ("queries", queries)):
        with (directory / f"{name}.jsonl").open("wb") as file:
            file.writelines(orjson.dumps(record) + b"\n" for record in records)
    with (directory / "qrels" / "test.tsv").open("w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for place, gold in enumerate(held_out.gold):
            file.write(f"{held_out.query_id(place)}\t{held_out.corpus_id(gold)}\t1\n")


def _write_pages(
    root: Path, config: SampleConfig, leaked: list[Leak], planted: Counter[str]
) -> Counter[str]:
    rng = draws(config.seed, "files")
    counts: Counter[str] = Counter()
    web = Parts(root / "chinesewebtext", config.documents_per_file, ".jsonl", gzipped=True)
    wudao = Parts(root / "wudao", config.documents_per_file, ".json")

    def world() -> Iterator[list[Passage]]:
        for told in training_world(config):
            counts["passages"] += len(told)
            yield told

    lines = config.malformed_lines - config.malformed_lines // 2
    for number, page in enumerate(_with_leaks(plant(config, documents(config, world())), leaked)):
        if page.fault and page.fault != "gold_document":
            planted[page.fault] += 1
        if number % 9 < 5:
            web.write(_web_record(page, number, rng.uniform(0.55, 0.99)))
            if planted["malformed_lines"] < lines and web.records % RECORDS_A_MALFORMED_LINE == 0:
                web.write_malformed(malformed(planted["malformed_lines"]))
                planted["malformed_lines"] += 1
        else:
            wudao.write(_wudao_record(page, number))
    web.close()
    wudao.close()
    counts["documents"] = web.records + wudao.records
    counts["files"] = web.files + wudao.files
    return counts


def _write_pairs(
    directory: Path, config: SampleConfig, leaked: list[Leak], planted: Counter[str]
) -> Counter[str]:
    mtp = Parts(directory, config.pairs_per_file, ".jsonl")
    waiting = leaked[::-1]
    text = ""
    for told in training_world(config):
        for passage in told:
            text = passage.text
            for query in training_queries(config, passage):
                mtp.write(_pair(config, query, told))
                if waiting and mtp.records % PAIRS_A_LEAK == 0:
                    mtp.write(_leaked_pair(waiting.pop(), text))
                if planted["malformed_lines"] < config.malformed_lines and (
                    mtp.records % RECORDS_A_MALFORMED_LINE == 0
                ):
                    mtp.write_malformed(malformed(planted["malformed_lines"]))
                    planted["malformed_lines"] += 1
    for leak in reversed(waiting):
        mtp.write(_leaked_pair(leak, text))
    mtp.close()
    return Counter(pairs=mtp.records, files=mtp.files)


def _pair(config: SampleConfig, query: Query, told: list[Passage]) -> dict[str, Any]:
    """A training pair; for a share of them, one to three passages about the same entity as negatives."""
    rng = draws(config.seed, "negatives", query.text)
    passage = query.passage
    negatives: list[Passage] = []
    if rng.random() < config.negatives_share:
        near = [other for other in told if other.topic == passage.topic and other is not passage]
        far = [other for other in told if other.topic != passage.topic]
        negatives = [*rng.sample(near, min(len(near), 2)), *rng.sample(far, 1)][: rng.randint(1, 3)]
    return {"query": query.text, "pos": [passage.text], "neg": [negative.text for negative in negatives]}


def _leaked_pair(leak: Leak, other: str) -> dict[str, Any]:
    """A leaked query with another passage as its positive, or a gold passage with another query."""
    return {"query": leak.query, "pos": [leak.gold if leak.form == "gold_pair" else other], "neg": []}


def _with_leaks(pages: Iterator[Document], leaked: list[Leak]) -> Iterator[Document]:
    """Pages with the leaked gold passages among them, each a paragraph of a page of its own."""
    waiting = leaked[::-1]
    for number, page in enumerate(pages):
        yield page
        if waiting and number % PAGES_A_LEAK == 0:
            yield _leaked_page(waiting.pop())
    for leak in reversed(waiting):
        yield _leaked_page(leak)


def _leaked_page(leak: Leak) -> Document:
    before, after = f"以下内容转自他处，编号{leak.query_id}。", "转载请注明出处，内容如有出入，以原文为准。"
    return Document(f"转载（{leak.corpus_id}）", f"{before}\n{leak.gold}\n{after}", "gold_document")


def _web_record(page: Document, number: int, score: float) -> dict[str, Any]:
    domain = f"site{number % 37}.example"
    return {
        "title": page.title, "score": round(score, 6), "text": page.text,
        "url": f"https://{domain}/{number}.html", "source_domain": domain,
    }  # fmt: skip


def _wudao_record(page: Document, number: int) -> dict[str, Any]:
    return {
        "id": number, "uniqueKey": f"{hash63(number, page.text):016x}",
        "titleUkey": f"{hash63(page.title):016x}", "dataType": ("百科", "新闻", "论坛", "博客")[number % 4],
        "title": page.title, "content": page.text,
    }  # fmt: skip
