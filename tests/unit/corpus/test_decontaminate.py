"""decontaminate.py: roles and containment against plain `in`."""

import random
import time

import numpy as np

from chuxin.benchmark_folder import Benchmark
from chuxin.corpus.decontaminate import DISTRACTOR, GOLD, QUERY, BenchmarkIndex, benchmark_texts
from chuxin.ids import match_key, text_hash


def _benchmark(name, corpus, queries, gold, titles=None):
    titles = titles or [""] * len(corpus)
    texts = [f"{t} {c}" if t else c for t, c in zip(titles, corpus, strict=True)]
    ids = [f"d{i}" for i in range(len(corpus))]
    return Benchmark(name, ids, texts, titles, [f"q{i}" for i in range(len(queries))], queries, [""] * len(queries),
                     {f"q{i}": {f"d{g}": 1, ids[-1]: 0} for i, g in enumerate(gold)})


def _index(*benchmarks, min_gold_chars=32):
    return BenchmarkIndex([benchmark_texts(b, str.strip, min_gold_chars) for b in benchmarks])


def _hashes(*texts):
    return np.array([text_hash(t) for t in texts], np.int64)


def test_roles_and_forms() -> None:
    one = _benchmark("one", ["金牌正文甲", "干扰项乙"], ["问题甲？"], [0], ["标题", ""])
    two = _benchmark("two", ["另一篇正文", "末篇"], ["问题乙"], [0])
    index = _index(one, two)
    assert index.names == ["one", "two"]
    queries = index.match(QUERY, _hashes("問題甲", "问题 乙！", "问题丙"))
    assert queries.tolist() == [0, 1, -1]
    gold = index.match(GOLD, _hashes("金牌正文甲。", "标题金牌正文甲", "标题", "干扰项乙", "另一篇正文"))
    assert gold.tolist() == [0, 0, -1, -1, 1]
    assert index.match(DISTRACTOR, _hashes("干扰项乙", "金牌正文甲")).tolist() == [0, -1]
    assert index.count(gold) == {"one": 2, "two": 1}


def test_texts_without_letters_match_nothing() -> None:
    index = _index(_benchmark("b", ["！！", "x"], ["？？"], [0]))
    assert index.match(QUERY, _hashes("。")).tolist() == [-1]
    assert index.match(GOLD, _hashes("。")).tolist() == [-1]


def test_no_benchmark_at_all() -> None:
    index = BenchmarkIndex([])
    assert index.match(QUERY, _hashes("x")).tolist() == [-1]
    assert index.gold_inside("x" * 100) == -1


def test_gold_inside_against_plain_search() -> None:
    rng = random.Random(0)
    alphabet = "甲乙丙丁"  # few letters, so that many passages share their beginnings

    def draw(size):
        return "".join(rng.choice(alphabet) for _ in range(size))

    shared = draw(20)
    golds = [shared + draw(20) for _ in range(20)] + [draw(rng.randrange(10, 60)) for _ in range(50)]
    index = _index(_benchmark("b", [*golds, "末篇"], [f"问{i}" for i in range(len(golds))], range(len(golds))))
    found = 0
    for _ in range(300):
        document = draw(rng.randrange(0, 120)) + rng.choice([*golds, "", shared])[:rng.randrange(10, 60)] + draw(20)
        expected = any(len(gold) >= 32 and gold in document for gold in golds)
        assert (index.gold_inside(document) >= 0) == expected
        found += expected
    assert 30 < found < 270


def test_punctuation_and_script_do_not_hide_a_gold_passage() -> None:
    gold = "这座小城沿河而建，老街的石板路被雨水磨得发亮，清早卖豆腐的人推着车子走过桥头。"
    index = _index(_benchmark("b", [gold, "末篇"], ["问"], [0]))
    assert index.gold_inside(match_key("前文。" + gold.replace("，", "\n") + "後文")) == 0
    assert index.gold_inside(match_key(gold[:-5])) == -1


def test_many_gold_passages_with_one_beginning_cost_little() -> None:
    golds = [f"{'开头相同的一句话而且还很长' * 3}{i:06d}{'结尾' * 10}" for i in range(2000)]
    index = _index(_benchmark("b", [*golds, "末"], [f"问{i}" for i in range(2000)], range(2000)))
    started = time.process_time()
    assert index.gold_inside("开头相同的一句话而且还很长" * 100) == -1
    assert time.process_time() - started < 2
