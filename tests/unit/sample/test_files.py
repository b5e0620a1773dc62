"""The written world: the same bytes, the public layouts, true counts, held-out entities, bounded files."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import opencc
import pytest

from chuxin.ids import match_key
from chuxin.sample.config import SampleConfig
from chuxin.sample.defects import LEAKED_QUERY_FORMS
from chuxin.sample.files import SIZES, write_world
from chuxin.sample.world import BENCHMARKS, DOMAINS, entity, held_out

SMALL = SampleConfig(
    seed=11, passages=1500, benchmark_passages=150, benchmark_queries=100, documents_per_file=90,
    pairs_per_file=600,
)  # fmt: skip
MALFORMED = object()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A written world: its directory and the counts it reports."""
    directory = tmp_path_factory.mktemp("world")
    return directory, write_world(directory, SMALL)


def parsed(line):
    """A line's object, or MALFORMED."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return MALFORMED


def lines(directory):
    """Every line of the JSON-lines files of a directory, gzipped or not."""
    for path in sorted(directory.iterdir()):
        opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
        with opened as file:
            yield from (parsed(line) for line in file)


def web_pages(root):
    """The valid records of the web pages."""
    records = lines(root / "raw/chinesewebtext")
    return [r for r in records if isinstance(r, dict) and isinstance(r.get("text"), str)]


def pairs(root):
    """The valid training pairs."""
    return [r for r in lines(root / "raw/mtp") if isinstance(r, dict) and isinstance(r.get("pos"), list)]


def pages(root):
    """Title and text of every valid document."""
    arrays = (json.loads(path.read_bytes()) for path in sorted((root / "raw/wudao").iterdir()))
    return [(r["title"], r["text"]) for r in web_pages(root)] + [
        (r["title"], r["content"]) for r in chain.from_iterable(arrays)
    ]


def benchmark(root, name):
    """A benchmark's corpus, queries and qrels as read from its files."""
    folder = root / "benchmarks" / name
    corpus = {r["_id"]: r for r in map(json.loads, (folder / "corpus.jsonl").read_bytes().splitlines())}
    queries = {r["_id"]: r for r in map(json.loads, (folder / "queries.jsonl").read_bytes().splitlines())}
    header, *rows = (folder / "qrels/test.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    return corpus, queries, [row.split("\t") for row in rows]


def is_rare_han(character):
    """Han outside U+4E00..U+9FA5."""
    code = ord(character)
    return 0x3400 <= code < 0x4E00 or 0x9FA5 < code < 0xA000 or 0x20000 <= code < 0x30000


def digest(root):
    """A hash of every file's path and bytes."""
    found = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()


def test_the_same_config_gives_the_same_bytes_in_another_process(world, tmp_path):
    root, _ = world
    program = (
        "from tests_config import config; from chuxin.sample.files import write_world;"
        "write_world('.', config)"
    )
    module = f"from chuxin.sample.config import SampleConfig\nconfig = {SMALL!r}\n"
    (tmp_path / "tests_config.py").write_text(module)
    target = tmp_path / "again"
    target.mkdir()
    source = Path(sys.modules["chuxin.sample.files"].__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{tmp_path}", "PYTHONHASHSEED": "1234"}
    subprocess.run([sys.executable, "-c", program], cwd=target, env=environment, check=True)
    assert digest(target) == digest(root)
    write_world(tmp_path / "other", replace(SMALL, seed=12))
    assert digest(tmp_path / "other") != digest(root)


def test_layouts_and_counts(world):
    root, counts = world
    web = web_pages(root)
    assert all(set(r) == {"title", "score", "text", "url", "source_domain"} for r in web)
    assert all(0 <= r["score"] <= 1 for r in web)
    assert len(pages(root)) == counts["documents"]
    for path in (root / "raw/wudao").iterdir():
        array = json.loads(path.read_bytes())
        assert 0 < len(array) <= SMALL.documents_per_file
        assert all(
            set(r) == {"id", "uniqueKey", "titleUkey", "dataType", "title", "content"} for r in array
        )
    assert len(pairs(root)) == counts["pairs"]
    for pair in pairs(root):
        assert set(pair) == {"query", "pos", "neg"}
        assert len(pair["pos"]) == 1
        assert pair["pos"][0] not in pair["neg"]
    with_negatives = sum(bool(pair["neg"]) for pair in pairs(root)) / counts["pairs"]
    assert with_negatives == pytest.approx(SMALL.negatives_share, abs=0.05)
    assert len(list((root / "raw/chinesewebtext").glob("*.gz"))) >= 1
    assert len(list((root / "raw/chinesewebtext").glob("*.jsonl"))) >= 2
    for name in BENCHMARKS:
        corpus, queries, qrels = benchmark(root, name)
        assert len(queries) == len(qrels) == SMALL.benchmark_queries
        assert {query for query, _, _ in qrels} == queries.keys()
        assert {passage for _, passage, _ in qrels} <= corpus.keys()
        assert {r["metadata"]["kind"] for r in queries.values()} == {"paraphrase", "keyword"}
        assert {r["metadata"]["domain"] for r in queries.values()} == {d.key for d in BENCHMARKS[name]}


def test_planted_faults_are_found_as_often_as_reported(world):
    root, counts = world
    texts = [text for _, text in pages(root)]
    keys = Counter(map(match_key, texts))
    assert sum(n - 1 for n in keys.values()) == counts["exact_duplicate"] + counts["width_duplicate"]
    assert sum(n - 1 for n in Counter(texts).values()) == counts["exact_duplicate"]
    assert sum("转载第" in text for text in texts) == counts["near_duplicate"]
    simplified = opencc.OpenCC("t2s").convert
    script = sum(sum(a != b for a, b in zip(t, simplified(t), strict=False)) > 20 for t in texts)
    assert script == counts["traditional"]
    assert sum("\ufffd" in text for text in texts) == counts["mojibake_replaced"]
    assert sum("锟斤拷" in text for text in texts) == counts["mojibake_gbk"]
    assert sum("ã\x80\x82" in text for text in texts) == counts["mojibake_latin1"]
    assert sum(any(map(is_rare_han, text)) for text in texts) == counts["rare_han"]
    assert sum("……" in text and "章 " in text for text in texts) == counts["contents"]
    assert sum(any(c in text for c in "\x00\x07\x1b\u200b\ufeff\u202e") for text in texts) == counts[
        "stray_characters"
    ]
    assert sum("编号" in text and "登录" in text or "首页" in text for text in texts) <= counts["short_lines"]
    assert sum(max(map(len, text.split("\n"))) < 10 for text in texts) == counts["short_lines"]
    assert sum(title.startswith("No. ") for title, _ in pages(root)) == counts["foreign"]
    assert all(counts[fault] > 0 for fault in ("rare_han", "contents", "foreign", "short_lines"))
    every = [*lines(root / "raw/chinesewebtext"), *lines(root / "raw/mtp")]
    valid = len(web_pages(root)) + counts["pairs"]
    assert len(every) - valid == counts["malformed_lines"] == SMALL.malformed_lines


def test_planted_leaks_are_all_there_and_the_only_ones(world):
    root, counts = world
    planted = json.loads((root / "planted.json").read_bytes())
    assert counts == {**planted["counts"], **{name: counts[name] for name in SIZES}}
    assert Counter(leak["form"] for leak in planted["leaks"]) == {
        form: counts[form] for form in (*LEAKED_QUERY_FORMS, "gold_pair", "gold_document")
    }
    trained = pairs(root)
    queries, gold, texts = {}, {}, set()
    for name in BENCHMARKS:
        corpus, asked, qrels = benchmark(root, name)
        queries |= {match_key(r["text"]): r["_id"] for r in asked.values()}
        gold |= {match_key(corpus[passage]["text"]): passage for _, passage, _ in qrels}
        texts |= {r["text"] for r in asked.values()}
    of = {form: [leak for leak in planted["leaks"] if leak["form"] == form] for form in counts}
    leaked = [leak for form in LEAKED_QUERY_FORMS for leak in of[form]]
    found = Counter(queries[match_key(p["query"])] for p in trained if match_key(p["query"]) in queries)
    assert found == Counter(leak["query_id"] for leak in leaked)
    assert sum(p["query"] in texts for p in trained) == counts["query_exact"]
    hit = Counter(gold[key] for p in trained for key in map(match_key, p["pos"]) if key in gold)
    assert hit == Counter(leak["corpus_id"] for leak in of["gold_pair"])
    held = Counter(
        gold[key]
        for _, text in pages(root)
        for key in map(match_key, text.split("\n"))
        if key in gold
    )
    assert held == Counter(leak["corpus_id"] for leak in of["gold_document"])


def test_no_training_text_mentions_a_held_out_entity_but_the_planted_leaks(world):
    root, counts = world
    kept = [entity(SMALL.seed, d, index) for d in DOMAINS for index in range(held_out(SMALL))]
    names = [word for subject in kept for word in (*subject.written, *subject.aliases)]
    leaked = {leak["query"] for leak in json.loads((root / "planted.json").read_bytes())["leaks"]}
    mentions = 0
    for pair in pairs(root):
        if pair["query"] in leaked:
            mentions += 1
            continue
        text = "\n".join((pair["query"], *pair["pos"], *pair["neg"]))
        assert not any(name in text for name in names), pair
    assert mentions == counts["gold_pair"] + sum(counts[form] for form in LEAKED_QUERY_FORMS)
    pages_of = sum(any(name in text for name in names) for _, text in pages(root))
    assert pages_of == counts["gold_document"]


def test_size_grows_in_files_not_in_their_size(tmp_path):
    small = SampleConfig(
        seed=1, passages=200, benchmark_passages=30, benchmark_queries=10, documents_per_file=40,
        pairs_per_file=100, malformed_lines=0, planted_share=0.0, leaked_share=0.0,
    )  # fmt: skip
    one = write_world(tmp_path / "one", small)
    ten = write_world(tmp_path / "ten", replace(small, passages=2000))
    assert one["passages"] < 212
    assert 5 * one["files"] < ten["files"] < 12 * one["files"]
    assert ten["documents"] == pytest.approx(10 * one["documents"], rel=0.15)
    biggest = max(path.stat().st_size for path in (tmp_path / "ten/raw").rglob("part-*") if path.is_file())
    assert biggest < 100_000
    assert set(ten) == set(SIZES), "nothing was planted"
