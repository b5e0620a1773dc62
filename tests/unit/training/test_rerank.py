"""The listwise objective against a padded step of transformers' own cross-encoder."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_tokenizer
from chuxin.models.reranker import CrossEncoder, load_reranker, save_reranker
from chuxin.schema import PLAN_GROUPS
from chuxin.training.config import OptimizerConfig, RerankerConfig, TrainExecution
from chuxin.training.plan_reader import Batch, Plan
from chuxin.training.rerank import Listwise

CPU = torch.device("cpu")
PLAN = Plan((), 4, 0, 0, "", sources=("a", "b"))


def config(budget: int = 60, **fields) -> RerankerConfig:
    execution = TrainExecution(micro_batch_tokens=budget)
    return RerankerConfig("plan", "model", OptimizerConfig(1e-3, 0), 7, execution=execution, **fields)


def batch(rows: int = 5, longest: int = 18, seed: int = 0) -> Batch:
    """Ragged groups of 2 to 5 passages; the teacher says nothing about the second one."""
    draw = np.random.default_rng(seed)

    def text() -> list[int]:
        return [0, *draw.integers(260, 300, draw.integers(1, longest)).tolist(), 2]

    table = []
    for row in range(rows):
        count = int(draw.integers(2, 6))
        passages = [
            {"passage_id": i, "text_hash": i, "token_ids": text(), "score": None if row == 1 else draw.normal()}
            for i in range(count)
        ]
        query = text()
        table.append({
            "epoch": 0, "batch": 0, "slice": 0, "row": row, "query_id": 100 + row, "source": "ab"[row % 2],
            "query_hash": row, "query_ids": query, "passages": passages,
            "lengths": [len(query), *(len(passage["token_ids"]) for passage in passages)],
        })  # fmt: skip
    lengths = np.array([length for row in table for length in row["lengths"]], np.int64)
    texts = np.array([len(row["lengths"]) for row in table], np.int64)
    return Batch(1, 0, 0, rows, pa.Table.from_pylist(table, PLAN_GROUPS), (lengths,), (texts,))


def share(given: Batch, rows: slice, *others: slice) -> Batch:
    """What the first of some ranks has of a batch, each with rows of its own."""
    table = given.table.to_pylist()
    of_ranks = [table[part] for part in (rows, *others)]
    lengths = tuple(np.array([n for row in own for n in row["lengths"]], np.int64) for own in of_ranks)
    texts = tuple(np.array([len(row["lengths"]) for row in own], np.int64) for own in of_ranks)
    start, stop, _ = rows.indices(len(table))
    return given._replace(
        table=given.table.slice(start, stop - start), lengths_of_ranks=lengths, texts_of_ranks=texts
    )


def step(model: CrossEncoder, settings: RerankerConfig, given: Batch) -> tuple[dict, torch.Tensor, list[bool], dict]:
    """Terms, by source, the `last` of each part sent, gradients by name."""
    objective = Listwise(model, settings, PLAN, model.max_length)
    sent = []

    def send(loss: torch.Tensor, last: bool) -> None:
        loss.backward()
        sent.append(last)

    model.zero_grad()
    terms = objective.backward(objective.prepare(given), CPU, send)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return terms.means, terms.by_source, sent, gradients


def naive(directory: str, given: Batch, distill: float, temperature: float) -> tuple[torch.Tensor, dict, torch.Tensor]:
    """One padded forward pass of all pairs, the loss group by group; losses, gradients and scores."""
    theirs = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    rows = given.table.to_pylist()
    pairs = [
        [*row["query_ids"], 2, *passage["token_ids"][1:]] for row in rows for passage in row["passages"]
    ]
    longest = max(map(len, pairs))
    ids = torch.tensor([[*pair, *[1] * (longest - len(pair))] for pair in pairs])
    scores = theirs(input_ids=ids, attention_mask=(ids != 1).long()).logits[:, 0]
    losses, start = [], 0
    for row in rows:
        count = len(row["passages"])
        log = torch.log_softmax(scores[start : start + count], 0)
        teacher = [passage["score"] for passage in row["passages"]]
        weight = 0.0 if None in teacher else distill
        loss = -(1 - weight) * log[0]
        if weight:
            loss = loss - weight * (torch.softmax(torch.tensor(teacher) / temperature, 0) * log).sum()
        losses.append(loss)
        start += count
    losses = torch.stack(losses)
    losses.mean().backward()
    return losses.detach(), {name: p.grad for name, p in theirs.named_parameters()}, scores.detach()


@pytest.fixture(scope="module")
def directory(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = load_reranker(tiny_model, seed=5)
    with torch.no_grad():  # scores far enough apart that the softmax is not flat
        model.classifier.out_proj.weight.mul_(30)
        model.classifier.dense.weight.mul_(10)
    saved = str(tmp_path_factory.mktemp("reranker") / "saved")
    save_reranker(model, load_tokenizer(tiny_model), saved)
    return saved


@pytest.mark.parametrize("distill", [0.0, 0.4, 1.0])
def test_loss_and_gradients_equal_a_padded_step_of_transformers(directory: str, distill: float) -> None:
    given = batch()
    expected, gradients, scores = naive(directory, given, distill, 0.7)
    settings = config(distill=distill, teacher_temperature=0.7)
    means, by_source, sent, found = step(load_reranker(directory), settings, given)
    torch.testing.assert_close(means["loss"], expected.mean(), rtol=1e-5, atol=1e-6)
    assert len(sent) > 2 and sent == [False] * (len(sent) - 1) + [True]
    for name, gradient in gradients.items():
        # transformers' table gets a gradient of zero for what no text uses; so does ours.
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    counts = [len(row["passages"]) for row in given.table.to_pylist()]
    right = [float(group.argmax() == 0) for group in scores.split(counts)]
    assert means["accuracy"].item() == pytest.approx(np.mean(right))
    sums = [expected[0::2].sum().item(), 3], [expected[1::2].sum().item(), 2]
    torch.testing.assert_close(by_source, torch.tensor(sums), rtol=1e-5, atol=1e-5)


def test_micro_batches_and_dropout_change_nothing_but_memory(directory: str) -> None:
    model = load_reranker(directory)
    results = [step(model, config(budget, dropout=0.3), batch()) for budget in (1, 80, 10_000)]
    assert [len(sent) for _, _, sent, _ in results][::2] == [5, 1]
    for means, _, _, gradients in results[1:]:
        torch.testing.assert_close(means["loss"], results[0][0]["loss"], rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][3][name], rtol=1e-4, atol=1e-5)
    assert means["loss"] != step(model, config(), batch())[0]["loss"]


def test_a_rank_without_rows_still_sends_one_last_part(directory: str) -> None:
    empty = share(batch(rows=2), slice(0, 0))
    means, by_source, sent, gradients = step(load_reranker(directory), config(), empty)
    assert sent == [True] and means["loss"] == 0 and not by_source.any()
    assert all(not gradient.any() for gradient in gradients.values())


def test_the_shares_of_two_skewed_ranks_add_up_to_the_whole(directory: str) -> None:
    model, given = load_reranker(directory), batch()
    whole = step(model, config(), given)
    parts = slice(0, 1), slice(1, 5)
    shares = [step(model, config(), share(given, *order)) for order in (parts, parts[::-1])]
    # The first one fills up with passes over nothing.
    assert shares[0][2] == shares[1][2] and len(shares[0][2]) > 1
    for name, mean in whole[0].items():
        torch.testing.assert_close(sum(share[0][name] for share in shares), mean)
    torch.testing.assert_close(shares[0][1] + shares[1][1], whole[1])
    for name, gradient in whole[3].items():
        torch.testing.assert_close(shares[0][3][name] + shares[1][3][name], gradient, rtol=1e-4, atol=1e-5)


def test_tokens_are_those_of_pairs(directory: str) -> None:
    given = batch()
    objective = Listwise(load_reranker(directory), config(), PLAN, 62)
    pairs = [
        len(row["query_ids"]) + len(passage["token_ids"]) for row in given.table.to_pylist()
        for passage in row["passages"]
    ]  # fmt: skip
    assert objective.tokens(objective.prepare(given)) == (sum(pairs), sum(pairs))


def test_a_pair_beyond_the_model_is_named(directory: str) -> None:
    model = load_reranker(directory)
    given = batch(rows=2)
    rows = given.table.to_pylist()
    rows[1]["passages"][0]["token_ids"] = [0, *[270] * 61, 2]
    rows[1]["lengths"][1] = 63
    given = share(given._replace(table=pa.Table.from_pylist(rows, PLAN_GROUPS)), slice(0, 2))
    with pytest.raises(InputError, match="query_id 101.*the model takes 64"):
        step(model, config(), given)


def test_training_learns_the_order(directory: str) -> None:
    model, given = load_reranker(directory), batch(rows=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        means, *_ = step(model, dataclasses.replace(config(10_000), distill=0.0), given)
        optimizer.step()
        losses.append(means["loss"].item())
    assert losses[-1] < 0.3 < losses[0] and means["accuracy"] == 1


def test_a_model_that_scores_all_alike_is_never_right(directory: str) -> None:
    model = load_reranker(directory)
    torch.nn.init.zeros_(model.classifier.out_proj.weight)
    assert step(model, config(), batch())[0]["accuracy"] == 0
