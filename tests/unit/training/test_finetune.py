"""The objective against losses written out pair by pair, for the dense vector and all heads, and what it refuses."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chuxin.models.encoder import M3Model
from chuxin.models.packed import pack
from chuxin.training.config import FinetuneConfig
from chuxin.training.finetune import Contrastive, freeze_heads
from chuxin.training.plan_reader import Batch, Plan, read_batches

from . import ranks

T = ranks.BASE.temperature


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    directory: Path = tmp_path_factory.mktemp("plan")
    ranks.write_plan(directory)
    return list(read_batches(ranks.plan(directory), 0, 1, 1, len(ranks.SLICES)))


def scores_of(model: M3Model, query: list[int], passage: list[int]) -> torch.Tensor:
    """Dense, sparse and multi-vector score of one pair, from forward passes of single texts."""
    sides = []
    for ids in (query, passage):
        out = model(pack([ids]), True)
        weights: dict[int, torch.Tensor] = {}
        for token, weight in zip(ids, out.weight_T, strict=True):
            if token not in ranks.SPECIAL:
                weights[token] = torch.maximum(weights[token], weight) if token in weights else weight
        sides.append((out.dense_NH[0], weights, out.vector_TD[1:]))
    (dense, weights, vectors), (other_dense, other_weights, other_vectors) = sides
    sparse = sum((weights[t] * other_weights[t] for t in weights.keys() & other_weights.keys()), torch.zeros(()))
    return torch.stack([dense @ other_dense, sparse, (vectors @ other_vectors.T).max(1).values.mean()]) / T


def reference(model: M3Model, batch: Batch, config: FinetuneConfig) -> tuple[torch.Tensor, dict[str, float]]:
    """The mean loss over the queries with its graph, and its terms."""
    rows = batch.table.to_pylist()
    passages = [(row["row"], place, passage) for row in rows for place, passage in enumerate(row["passages"])]
    total, terms = [], []
    for row in rows:
        positive = row["passages"][0]
        kept = [
            (place == 0, passage) for owner, place, passage in passages
            if (config.in_batch_negatives or owner == row["row"])
            and ((owner == row["row"] and place == 0)
                 or passage["text_hash"] not in (positive["text_hash"], row["query_hash"]))
        ]  # fmt: skip
        target = next(n for n, (_, passage) in enumerate(kept) if passage is positive)
        all_scores = torch.stack([scores_of(model, row["query_ids"], p["token_ids"]) for _, p in kept], 1)
        logs = torch.log_softmax(torch.cat([all_scores, all_scores[:1] + 0.3 * all_scores[1:2] + all_scores[2:]]), 1)
        dense, sparse, multi, ensemble = -logs[:, target]
        if config.heads == "dense":
            total.append(dense)
        else:
            total.append((dense + ensemble + 0.1 * sparse + multi) / 4)
            if config.self_distill_from is not None:
                taught = -(logs[3].exp().detach() * logs[:3]).sum(1)
                total[-1] = total[-1] / 2 + (taught[0] + 0.1 * taught[1] + taught[2]) / 6
        names = ("dense_loss", "sparse_loss", "multivector_loss", "ensemble_loss")
        terms.append(dict(zip(names, (dense, sparse, multi, ensemble), strict=True)))
        terms[-1] |= {"loss": total[-1], "accuracy": float(all_scores[0].argmax() == target)}
    means = {name: sum(float(torch.as_tensor(term[name]).detach()) for term in terms) / len(terms) for name in terms[0]}
    return torch.stack(total).mean(), means


@pytest.mark.parametrize("options", [
    {"heads": "dense"}, {"heads": "all"}, {"heads": "all", "self_distill_from": 1},
    {"heads": "all", "self_distill_from": 1, "in_batch_negatives": False},
])  # fmt: skip
@pytest.mark.parametrize("grad_cache", [False, True])
def test_loss_and_gradients_are_those_of_the_formula(batches: list[Batch], options: dict, grad_cache: bool) -> None:
    config = replace(ranks.BASE, **options, execution=replace(ranks.BASE.execution, grad_cache=grad_cache))
    model = ranks.tiny()
    loss, means = reference(model, batches[2], config)
    loss.backward()
    expected = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    result = ranks.step(model, config, batches[2])
    assert next(iter(result["means"])) == "loss"
    for name, value in result["means"].items():
        if name in means:
            assert float(value) == pytest.approx(means[name], abs=1e-4), name
    for name, gradient in expected.items():
        torch.testing.assert_close(result["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_sources_add_up_to_the_loss(batches: list[Batch]) -> None:
    result = ranks.step(ranks.tiny(), ranks.BASE, batches[0])
    counts = result["by_source"][:, 1].tolist()
    assert counts == [4, 3] and result["cached_bytes"] > 0
    assert float(result["by_source"][:, 0].sum() / 7) == pytest.approx(float(result["means"]["loss"]), abs=1e-5)


def same_but(batch: Batch, edit) -> Batch:
    rows = batch.table.to_pylist()
    edit(rows)
    table = batch.table.from_pylist(rows, schema=batch.table.schema)
    return batch._replace(table=table)


def test_self_distillation_begins_with_its_step(batches: list[Batch]) -> None:
    config = replace(ranks.BASE, heads="all", self_distill_from=2)
    before, after = (ranks.step(ranks.tiny(), config, batches[0]._replace(step=step)) for step in (1, 2))
    assert "dense_self_loss" not in before["means"] and "dense_self_loss" in after["means"]


@pytest.mark.parametrize("heads", ["dense", "all"])
def test_a_false_negative_gets_no_gradient(batches: list[Batch], heads: str) -> None:
    """The last token stands in one passage only: its embedding learns nothing once that passage is masked."""
    marked = ranks.VOCAB - 1

    def edit(rows: list[dict]) -> None:
        del rows[1:]
        del rows[0]["passages"][3:]
        rows[0]["query_ids"] = [0, 20, 21, 2]
        for place, passage in enumerate(rows[0]["passages"]):
            passage |= {"token_ids": [0, 30 + place, 20, 2], "score": [1.0, 1.4][min(place, 1)], "text_hash": place}
        rows[0]["passages"].append({"passage_id": 1, "token_ids": [0, marked, 20, 2], "score": 2.5, "text_hash": 77})

    def embedding_gradient(batch: Batch, **options) -> torch.Tensor:
        config = replace(ranks.BASE, heads=heads, **options)
        gradients = ranks.step(ranks.tiny(), config, batch)["gradients"]
        return gradients["backbone.embeddings.word_embeddings.weight"].abs().sum(1)

    batch = same_but(batches[0], edit)
    assert embedding_gradient(batch)[marked] > 0
    masked = embedding_gradient(batch, false_negative_margin=1.0)
    assert masked[marked] == 0 and masked[31] > 0  # 0.4 above the positive is within the margin
    copied = same_but(batch, lambda rows: rows[0]["passages"][-1].update(text_hash=rows[0]["passages"][0]["text_hash"]))
    assert embedding_gradient(copied)[marked] == 0
    unknown = same_but(batch, lambda rows: rows[0]["passages"][0].update(score=None))
    assert embedding_gradient(unknown, false_negative_margin=1.0)[marked] > 0


def test_the_teacher_adds_or_replaces(batches: list[Batch]) -> None:
    losses = {
        distill: float(ranks.step(ranks.tiny(), replace(ranks.BASE, distill=distill), batches[0])["means"]["loss"])
        for distill in ("none", "kl_div", "m3_kd_loss")
    }
    assert losses["kl_div"] > losses["none"] and len(set(losses.values())) == 3
    assert all(map(math.isfinite, losses.values()))


def test_a_model_whose_vectors_are_all_alike_is_never_right(batches: list[Batch]) -> None:
    model = ranks.tiny()
    norm = model.backbone.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.copy_(torch.eye(16)[0])
    means = ranks.step(model, ranks.BASE, batches[0])["means"]
    assert means["accuracy"] == 0 and means["loss"] > 1


def test_tokens_are_all_real(batches: list[Batch]) -> None:
    objective = Contrastive(ranks.tiny(), ranks.BASE, Plan((), 4, 0, 0, "", ranks.SOURCES), ranks.SPECIAL)
    tokens = int(sum(batches[0].lengths_of_ranks[0]))
    assert objective.tokens(objective.prepare(batches[0])) == (tokens, tokens)


def test_frozen_heads_get_no_gradient() -> None:
    model = freeze_heads(ranks.tiny())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "sparse_linear.weight", "sparse_linear.bias", "colbert_linear.weight", "colbert_linear.bias",
    ]  # fmt: skip
