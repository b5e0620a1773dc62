"""GradCache against the plain step: loss and gradients, with dropout, for any micro-batches; and what it keeps."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from chuxin.models.encoder import Outputs
from chuxin.training.config import TrainExecution
from chuxin.training.grad_cache import Cached, backward
from chuxin.training.micro import parts
from chuxin.training.plan_reader import Batch, read_batches

from . import ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    directory = tmp_path_factory.mktemp("plan")
    ranks.write_plan(directory)
    return next(read_batches(ranks.plan(directory), 0, 1, 1, 1))


@pytest.mark.parametrize("options", [{"heads": "dense"}, {"heads": "all", "self_distill_from": 1}])
def test_equals_the_plain_step_under_dropout(batch: Batch, options: dict) -> None:
    model, seen = ranks.tiny(), []
    for budget, grad_cache in ((10**6, False), (10**6, True), (200, False), (200, True), (40, True), (1, True)):
        execution = TrainExecution(micro_batch_tokens=budget, grad_cache=grad_cache)
        seen.append(ranks.step(model, replace(ranks.BASE, dropout=0.3, execution=execution, **options), batch))
    plain, *others = seen
    assert plain["parts"] == 1 and others[-1]["parts"] == len(batch.lengths_of_ranks[0])
    for other in others:
        for name, mean in plain["means"].items():
            torch.testing.assert_close(other["means"][name], mean, rtol=1e-5, atol=1e-5)
        for name, gradient in plain["gradients"].items():
            torch.testing.assert_close(other["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    undropped = ranks.step(model, replace(ranks.BASE, **options), batch)
    assert abs(float(undropped["means"]["loss"] - plain["means"]["loss"])) > 1e-3


def test_every_part_but_the_last_is_computed_twice(batch: Batch) -> None:
    counts = []
    for grad_cache in (False, True):
        execution = TrainExecution(micro_batch_tokens=80, grad_cache=grad_cache)
        result = ranks.step(ranks.tiny(), replace(ranks.BASE, execution=execution), batch)
        counts.append(result["forward"])
        assert result["send"] == [False] * (result["parts"] - 1) + [True]
    assert counts == [result["parts"], 2 * result["parts"] - 1] and result["parts"] > 3


def test_only_one_graph_lives_at_a_time() -> None:
    """Each graph holds a token until it is freed: more than one at once would be seen."""
    alive = [0, 0]

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, states):
            ctx.count = Count()
            return states.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Count:
        def __init__(self) -> None:
            alive[0] += 1
            alive[1] = max(alive)

        def __del__(self) -> None:
            alive[0] -= 1

    table = nn.Embedding(50, 4)

    def compute(part) -> Outputs:
        states = table(part.packed.ids_T)
        states = Watched.apply(states) if torch.is_grad_enabled() else states
        return Outputs(states[part.packed.bounds_N1[:-1].long()], None, None)

    def loss(cache: Cached) -> tuple[Cached, None]:
        return cache.zeros(), None

    texts = [torch.arange(5).numpy() for _ in range(6)]
    for keep_all, most in ((False, 1), (True, 6)):
        alive[:] = [0, 0]
        made = parts(texts, torch.zeros(6).numpy(), 5, 6)
        backward(made, compute, loss, lambda part, last: part.backward(), CPU, keep_all)
        assert alive == [0, most]


def test_fillers_send_a_gradient_of_zero() -> None:
    model = ranks.tiny()
    seen = []

    def compute(part) -> Outputs:
        return model(part.packed, True)

    def loss(cache: Cached) -> tuple[Cached, str]:
        assert cache.dense_NH.shape == (0, 16) and cache.weight_T.shape == (0,) and cache.vector_VD.shape == (0, 16)
        return cache.zeros(), "terms"

    def send(part: torch.Tensor, last: bool) -> None:
        seen.append(last)
        part.backward()

    made = parts([], torch.zeros(0).numpy(), 100, 3)
    assert backward(made, compute, loss, send, CPU, keep_all=False) == "terms"
    assert seen == [False, False, True]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
