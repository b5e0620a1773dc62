"""The dev score against the evaluate stage's own steps, and a cross-encoder's against sorting by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chuxin.encoding.engine import Encoder
from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer
from chuxin.models.packed import Packed
from chuxin.search.bm25 import BM25
from chuxin.search.exact import top_k
from chuxin.search.metrics import score
from chuxin.training import dev
from chuxin.training.best import scored
from chuxin.training.checkpoint import best, claim
from chuxin.training.config import DevConfig
from chuxin.training.dev import dev_score, on_all_ranks, rerank_score
from chuxin.training.ema import Average

from ..conftest import SENTENCES
from .engines import TEXTS, module, text_sums

CPU = torch.device("cpu")
QUERIES = [SENTENCES[2 * n][3:9] for n in range(4)]
QRELS = {0: {0: 1, 5: 0, 9: 2}, 1: {1: 1, 7: 0}, 2: {2: 3}}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "qrels").mkdir()
    for name, texts in (("corpus", SENTENCES[:20]), ("queries", QUERIES)):
        lines = [json.dumps({"_id": f"{name[0]}{n}", "text": text}) for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = [f"q{q}\tc{c}\t{grade}" for q, judged in QRELS.items() for c, grade in judged.items()]
    (tmp_path / "qrels/test.tsv").write_text("\n".join(rows), encoding="utf-8")
    return str(tmp_path)


def test_equals_encoding_searching_and_scoring(tiny_model: str, folder: str) -> None:
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():  # as drawn, all cosines are 0.9999 and more: rounding ranks them
        torch.nn.init.normal_(weight, float("LayerNorm.weight" in name), 0.3)
    config = DevConfig(folder, every=1, query_max_len=6, passage_max_len=12)
    compute = dev_score(folder, config, tokenizer, model.max_length, 40, CPU)
    found = compute(lambda packed: model(packed).dense_NH)
    encoders = [Encoder(tiny_model, length, 1000) for length in (6, 12)]
    for encoder in encoders:
        encoder.model = model
    queries, passages = encoders[0].encode(QUERIES[:3]), encoders[1].encode(SENTENCES[:20])
    index = top_k(queries, passages, 10)[1]
    qrels = {f"q{q}": {f"c{c}": grade for c, grade in judged.items()} for q, judged in QRELS.items()}
    expected = score(qrels, list(qrels), [f"c{n}" for n in range(20)], index)["ndcg_at_10"].mean()
    assert found == pytest.approx(float(expected), abs=1e-6) and 0 < found < 1


def pairs_of(folder: str, tokenizer, config: DevConfig) -> dict[tuple[int, ...], tuple[int, int]]:
    """Token ids of every pair of a query and a passage → query, passage."""
    found = {}
    for query in range(3):
        first = tokenizer(QUERIES[query], truncation=True, max_length=config.query_max_len)["input_ids"]
        for passage in range(20):
            text = SENTENCES[passage]
            second = tokenizer(text, truncation=True, max_length=config.passage_max_len)["input_ids"]
            found[*first, second[-1], *second[1:]] = query, passage
    assert len(found) == 60
    return found


def test_a_cross_encoder_sorts_judged_passages_among_others(
    tiny_model: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "CANDIDATES", 4)
    tokenizer, config = load_tokenizer(tiny_model), DevConfig(folder, every=1, query_max_len=8, passage_max_len=30)
    compute = rerank_score(folder, config, tokenizer, 64, 60, CPU)
    pair_of, seen = pairs_of(folder, tokenizer, config), []

    def judge(packed: Packed) -> torch.Tensor:
        """The passage's number is its score: query 0's order is 9, 5, 0 with others between."""
        pairs = [pair_of[tuple(ids.tolist())] for ids in packed.ids_T.split(packed.lengths)]
        seen.extend(pairs)
        return torch.tensor([float(passage) for _, passage in pairs])

    found, expected = compute(judge), []
    corpus = [SENTENCES[n] for n in range(20)]
    for query, judged in QRELS.items():
        best = BM25(corpus).search([QUERIES[query]], 20)[1][0].tolist()
        ranked = [n for n in best if n >= 0 and n not in judged]
        others = (ranked + [n for n in range(20) if n not in judged and n not in ranked])[:4]
        assert sorted(n for q, n in seen if q == query) == sorted([*judged, *others])
        gains = [judged.get(n, 0) for n in sorted([*judged, *others], reverse=True)]
        ideal = sorted((grade for grade in judged.values()), reverse=True)
        expected.append(dcg(gains) / dcg(ideal))
    assert found == pytest.approx(sum(expected) / 3, abs=1e-6) and 0 < found < 1
    seen.clear()
    assert compute(judge) == found  # the same candidates each time


def dcg(gains: list[int]) -> float:
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:10]))


def test_benchmarks_that_judge_relevant_passages_only_tell_models_apart(tiny_model: str, folder: str) -> None:
    Path(folder, "qrels/test.tsv").write_text("q0\tc0\t1\nq1\tc1\t1\n", encoding="utf-8")
    tokenizer, config = load_tokenizer(tiny_model), DevConfig(folder, every=1, query_max_len=8, passage_max_len=30)
    compute = rerank_score(folder, config, tokenizer, 64, 60, CPU)
    pair_of = pairs_of(folder, tokenizer, config)

    def scored(value) -> float:
        return compute(lambda packed: torch.tensor(
            [value(*pair_of[tuple(ids.tolist())]) for ids in packed.ids_T.split(packed.lengths)]
        ))  # fmt: skip

    assert scored(lambda query, passage: float(query == passage)) == 1.0
    assert scored(lambda query, passage: -float(query == passage)) == 0.0
    assert scored(lambda query, passage: 0.5) == 0.0  # equal scores: the relevant stand last


def test_what_is_no_number_is_refused(tiny_model: str, folder: str) -> None:
    tokenizer, config = load_tokenizer(tiny_model), DevConfig(folder, every=1, query_max_len=8, passage_max_len=30)
    broken = rerank_score(folder, config, tokenizer, 64, 60, CPU)
    pair_of = pairs_of(folder, tokenizer, config)

    def judge(packed: Packed) -> torch.Tensor:
        queries = [pair_of[tuple(ids.tolist())][0] for ids in packed.ids_T.split(packed.lengths)]
        return torch.tensor([float("inf") if query == 1 else 0.0 for query in queries])

    with pytest.raises(InputError, match="query q1.*a passage's score is no finite number"):
        broken(judge)
    compute = dev_score(folder, config, tokenizer, 64, 60, CPU)
    with pytest.raises(InputError, match="query q0.*the vector is no finite number"):
        compute(lambda packed: torch.full((len(packed.lengths), 4), float("nan")))


def test_on_all_ranks_keeps_the_order_and_the_budget() -> None:
    sizes: list[int] = []

    def compute(packed: Packed) -> torch.Tensor:
        sizes.append(len(packed.ids_T))
        return text_sums(packed)

    found = on_all_ranks(TEXTS, compute, 12, CPU)
    assert found.tolist() == [[text.sum(), len(text)] for text in TEXTS] and found.dtype == np.float32
    assert max(sizes) <= 12 and sum(sizes) == sum(map(len, TEXTS))


def test_what_does_not_fit_is_refused(tiny_model: str, folder: str) -> None:
    tokenizer, config = load_tokenizer(tiny_model), DevConfig(folder, 1, 30, 40)
    with pytest.raises(InputError, match="a text may have 70 tokens, the model takes 64"):
        rerank_score(folder, config, tokenizer, 64, 100, CPU)
    with pytest.raises(InputError, match="a text may have 65 tokens"):
        dev_score(folder, replace(config, passage_max_len=65), tokenizer, 64, 100, CPU)
    Path(folder, "qrels/test.tsv").write_text("q0\tc0\t0\n", encoding="utf-8")
    with pytest.raises(InputError, match="no query has a relevant passage"):
        dev_score(folder, config, tokenizer, 64, 100, CPU)


def test_the_best_weights_are_kept_and_the_average_is_what_is_scored(tmp_path: Path) -> None:
    state, inner = str(tmp_path), module()
    owner, average, values = claim(state), Average(inner, 0.5), iter([0.3, 0.6, 0.6, 0.2])
    scores_of: list[float] = []

    def compute() -> float:
        scores_of.append(inner[1].bias[0].item())
        return next(values)

    def steps() -> iter:
        for step in range(1, 8):
            torch.nn.init.constant_(inner[1].bias, float(step))
            average.held["1.bias"].fill_(-step)
            yield {"step": step}

    records = list(scored(steps(), compute, 2, 7, inner, average, state, owner, done=0))
    assert [r.get("dev_ndcg_at_10") for r in records] == [None, 0.3, None, 0.6, None, 0.6, 0.2]
    assert scores_of == [-2, -4, -6, -7]
    assert best(state, 7).step == 4 and best(state, 7).score == 0.6
    assert inner[1].bias[0].item() == 7 and float(average.held["1.bias"][0]) == -7
