"""Scores of pairs: any budget and any lack of memory give the same, in the order of the pairs; lengths are checked."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from chuxin.encoding.pairs import PairScorer, score_pairs
from chuxin.errors import InputError
from chuxin.models.checkpoint import load_tokenizer
from chuxin.models.packed import Packed
from chuxin.models.reranker import CrossEncoder, load_reranker, save_reranker

QUERIES = ["谁在北京学习做菜", "note"]
PASSAGES = ["老师在北京学习做菜,傍晚才回来。", "上海", "医生在广州参观博物馆,第二天才回来。", "没有用到"]
INDEX = np.array([[0, 2], [1, 0], [0, 0], [0, 1], [1, 1]])


@pytest.fixture(scope="module")
def reranker(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    saved = str(tmp_path_factory.mktemp("reranker") / "saved")
    save_reranker(load_reranker(tiny_model, seed=5), load_tokenizer(tiny_model), saved)
    return saved


def test_scores_are_those_of_transformers(reranker: str) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(reranker).eval()
    tokenizer = AutoTokenizer.from_pretrained(reranker)
    expected = [
        theirs(**tokenizer(QUERIES[q], PASSAGES[p], return_tensors="pt")).logits.item() for q, p in INDEX.tolist()
    ]
    for budget in (1, 40, 1000):
        scores = PairScorer(reranker, 24, 40, budget).score(QUERIES, PASSAGES, INDEX)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert PairScorer(reranker, 24, 40, 9).score(QUERIES, PASSAGES, INDEX[:0]).shape == (0,)


def test_each_side_is_cut_at_its_own_length(reranker: str) -> None:
    long = PairScorer(reranker, 8, 12, 100)
    tokenizer = load_tokenizer(reranker)
    cut = [tokenizer.decode(tokenizer(PASSAGES[2])["input_ids"][1:11])]
    both = long.score(QUERIES, [PASSAGES[2], *cut], np.array([[1, 0], [1, 1]]))
    assert both[0] == pytest.approx(both[1], abs=1e-6)


def test_pairs_longer_than_the_model_are_refused(reranker: str) -> None:
    with pytest.raises(InputError, match=r"a pair takes up to 64 tokens, not 32 \+ 40"):
        PairScorer(reranker, 32, 40, 100)


class Small:
    """A cross-encoder on a device that holds so many tokens of one pass."""

    def __init__(self, model: CrossEncoder, tokens: int, on_cpu: bool = False) -> None:
        self.model, self.tokens, self.on_cpu, self.passes = model, tokens, on_cpu, list[int]()

    def score(self, packed: Packed) -> torch.Tensor:
        if len(packed.ids_T) > self.tokens:
            if self.on_cpu:
                torch.empty(1 << 60, dtype=torch.int8)  # more than a machine has: the CPU allocator's own error
            raise torch.OutOfMemoryError("out of memory")
        self.passes.append(len(packed.ids_T))
        return self.model.score(packed)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_out_of_memory_halves_the_batch_and_changes_no_score(reranker: str, on_cpu: bool) -> None:
    scorer = PairScorer(reranker, 24, 40, 1000)
    pairs = scorer.tokenise(QUERIES, PASSAGES, np.repeat(INDEX, 20, axis=0))
    expected = score_pairs(scorer.model, pairs, 1000)
    for room in (400, 60, max(map(len, pairs))):
        small = Small(scorer.model, room, on_cpu)
        np.testing.assert_allclose(score_pairs(small, pairs, 1000), expected, rtol=0, atol=1e-5)
        assert sum(small.passes) == sum(map(len, pairs))  # nothing is computed twice, and nothing left out
    with pytest.raises(RuntimeError if on_cpu else torch.OutOfMemoryError, match="memory"):
        score_pairs(Small(scorer.model, 5, on_cpu), pairs, 1000)
    scorer.model = Small(scorer.model, 5, on_cpu)
    with pytest.raises(InputError, match=r"a pair of up to \d+ tokens does not fit the memory of cpu"):
        scorer.score(QUERIES, PASSAGES, INDEX)


def test_a_score_that_is_no_number_is_said(reranker: str) -> None:
    scorer = PairScorer(reranker, 24, 40, 1000)
    scorer.model = SimpleNamespace(score=lambda packed: torch.full((len(packed.lengths),), float("nan")))
    with pytest.raises(InputError, match="scores are no numbers.*float32"):
        scorer.score(QUERIES, PASSAGES, INDEX)


def test_each_text_is_tokenised_once(reranker: str) -> None:
    scorer = PairScorer(reranker, 24, 40, 1000)
    seen: list[str] = []
    tokenizer = scorer.tokenizer
    scorer.tokenizer = lambda texts, **settings: seen.extend(texts) or tokenizer(texts, **settings)
    pairs = scorer.tokenise(QUERIES, PASSAGES, INDEX)
    assert sorted(seen) == sorted([*QUERIES, *PASSAGES[:3]])
    whole = tokenizer([QUERIES[q] for q in INDEX[:, 0]], [PASSAGES[p] for p in INDEX[:, 1]])["input_ids"]
    assert [pair.tolist() for pair in pairs] == whole


def test_another_failure_is_not_taken_for_a_lack_of_memory(reranker: str) -> None:
    scorer, calls = PairScorer(reranker, 24, 40, 1000), []

    def broken(packed: Packed) -> torch.Tensor:
        calls.append(len(packed.ids_T))
        raise RuntimeError("shapes do not fit")

    scorer.model = SimpleNamespace(score=broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        scorer.score(QUERIES, PASSAGES, INDEX)
    assert len(calls) == 1
