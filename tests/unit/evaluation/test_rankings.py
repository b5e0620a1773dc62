"""Rankings by a model's outputs and by a reranker, against FlagEmbedding's own scores of every pair."""

import dataclasses

import numpy as np
import pytest
import torch

from chuxin.benchmark_folder import Benchmark
from chuxin.encoding.engine import Encoder
from chuxin.encoding.pairs import PairScorer
from chuxin.errors import InputError
from chuxin.evaluation import rankings
from chuxin.evaluation.config import EvaluateConfig, Reranking
from chuxin.models.checkpoint import load_model, load_tokenizer, quiet_transformers, save_model
from chuxin.models.reranker import load_reranker, save_reranker

PASSAGES = [
    f"{who}在{where}{what},{when}才回来。" for who in ("老师", "医生") for where in ("北京", "上海")
    for what in ("学习做菜", "修理自行车") for when in ("傍晚", "第二天")
]  # fmt: skip
QUERIES = ["谁在北京学习做菜", "医生修理自行车", "上海", "回来的老师"]
BENCHMARK = Benchmark(
    "b", [str(i) for i in range(16)], PASSAGES, [""] * 16, [str(i) for i in range(4)], QUERIES, [""] * 4, {}
)
CONFIG = EvaluateConfig(models={"m": "m"}, tasks={"t": "t"}, query_max_len=20, passage_max_len=40, seed=0)


@pytest.fixture(scope="module")
def trained(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that tells texts apart: larger weights, and heads marked as trained."""
    model = load_model(tiny_model)
    with torch.no_grad():
        for parameter in (*model.backbone.encoder.parameters(), *model.backbone.embeddings.parameters()):
            parameter.mul_(8 if parameter.ndim == 2 else 1)
        model.sparse_linear.weight.mul_(20)
        model.sparse_linear.bias.fill_(0.5)
    model.heads_trained = True
    directory = str(tmp_path_factory.mktemp("trained") / "model")
    save_model(model, load_tokenizer(tiny_model), directory)
    return directory


def test_outputs_order_passages_as_flagembeddings_scores_do(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from FlagEmbedding import BGEM3FlagModel

    monkeypatch.setattr(rankings, "CHUNK", 5)  # several chunks of passages
    found = rankings.by_model(trained, BENCHMARK, CONFIG, ("dense", "sparse", "multivector", "hybrid"))
    with quiet_transformers():
        reader = BGEM3FlagModel(trained, use_fp16=False, devices="cpu")
        pairs = [[query, passage] for query in QUERIES for passage in PASSAGES]
        scores = reader.compute_score(pairs, weights_for_different_modes=[1.0, 0.3, 1.0])
    table = {name: np.array(values).reshape(4, 16) for name, values in scores.items()}
    hybrid = table["dense"] + 0.3 * table["sparse"] + table["colbert"]
    for name, expected in (
        ("dense", table["dense"]), ("sparse", table["sparse"]), ("multivector", table["colbert"]), ("hybrid", hybrid),
    ):  # fmt: skip
        assert np.ptp(expected, axis=1).max() > 0.02, name
        for row, index in enumerate(found[name]):
            index = index[index >= 0]
            assert (np.diff(expected[row, index]) <= 1e-5).all(), name
            assert len(index) == (16 if name != "sparse" else (expected[row] > 0).sum())
    assert not np.array_equal(found["dense"], found["multivector"])


def test_a_reranker_orders_the_first_results_and_leaves_the_others(tiny_model: str, tmp_path: object) -> None:
    reranker = f"{tmp_path}/reranker"
    save_reranker(load_reranker(tiny_model, seed=5), load_tokenizer(tiny_model), reranker)
    dense = rankings.by_model(tiny_model, BENCHMARK, CONFIG, ("dense",))["dense"]
    found = rankings.by_reranker(Reranking("r", "m", top_k=6), reranker, tiny_model, BENCHMARK, CONFIG)
    assert np.array_equal(found[:, 6:], dense[:, 6:])
    scorer = PairScorer(reranker, 20, 40, 500)
    for row in range(4):
        scores = scorer.score(QUERIES, PASSAGES, np.array([[row, index] for index in dense[row, :6]]))
        assert found[row, :6].tolist() == dense[row, :6][np.argsort(-scores, kind="stable")].tolist()
    more = rankings.by_reranker(Reranking("r", "m", top_k=50), reranker, tiny_model, BENCHMARK, CONFIG)
    assert more.shape == dense.shape


def test_heads_that_were_never_trained_are_refused(tiny_model: str) -> None:
    with pytest.raises(InputError, match="its hybrid output was never trained"):
        rankings.by_model(tiny_model, BENCHMARK, CONFIG, ("dense", "hybrid"))


def test_dense_alone_needs_no_heads(trained: str) -> None:
    config = dataclasses.replace(CONFIG, passage_max_len=30)
    found = rankings.by_model(trained, BENCHMARK, config, ("dense",))["dense"]
    passages, queries = (Encoder(trained, n, 99).encode(t) for n, t in ((30, PASSAGES), (20, QUERIES)))
    scores = np.take_along_axis(queries @ passages.T, found, 1)
    assert (np.diff(scores, axis=1) <= 1e-6).all() and (np.sort(found) == np.arange(16)).all()
