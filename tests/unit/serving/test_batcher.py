import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence

import numpy as np
import pytest

from chuxin.serving.batcher import Batcher


class Model:
    """Vectors [length, first id]; records the batches it saw, and holds each until `gate` is open."""

    def __init__(self) -> None:
        self.batches: list[list[Sequence[int]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, ids: list[Sequence[int]]) -> np.ndarray:
        self.batches.append(ids)
        assert self.gate.wait(5)
        if any(sequence[0] < 0 for sequence in ids):
            raise ValueError("poisoned")
        return np.array([[len(sequence), sequence[0]] for sequence in ids], dtype=np.float32)


def run(
    test: Callable[[Batcher, Model], Coroutine], batch_tokens: int = 10, max_wait_ms: float = 20
) -> Model:
    async def with_batcher() -> Model:
        model = Model()
        batcher = Batcher(model, batch_tokens, max_wait_ms)
        try:
            await asyncio.wait_for(test(batcher, model), 5)
        finally:
            model.gate.set()
            await batcher.close()
        return model

    return asyncio.run(with_batcher())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_each_request_gets_its_own_vectors_in_its_order() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        requests = [[[10 * r + i] * (1 + (r + i) % 4) for i in range(1 + r % 3)] for r in range(20)]
        answers = await asyncio.gather(*map(batcher.embed, requests))
        for request, answer in zip(requests, answers, strict=True):
            assert answer.tolist() == [[len(ids), ids[0]] for ids in request]

    model = run(test)
    assert all(len(batch) == 1 or sum(map(len, batch)) <= 10 for batch in model.batches)
    assert len(model.batches) < 20


def test_company_within_the_wait_shares_a_batch() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = asyncio.create_task(batcher.embed([[1]]))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, batcher.embed([[2]]))

    assert run(test, max_wait_ms=500, batch_tokens=2).batches == [[[1], [2]]]


def test_a_full_batch_does_not_wait_and_a_lone_input_waits_no_longer_than_said() -> None:
    async def full(batcher: Batcher, model: Model) -> None:
        started = time.monotonic()
        await batcher.embed([[1] * 10])
        assert time.monotonic() - started < 2

    async def lone(batcher: Batcher, model: Model) -> None:
        started = time.monotonic()
        await batcher.embed([[1]])
        assert 0.05 <= time.monotonic() - started < 2

    run(full, max_wait_ms=60_000)
    run(lone, max_wait_ms=50)


def test_inputs_gather_while_the_model_is_busy_and_leave_together_at_once() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.embed([[1]]))
        await until(lambda: len(model.batches) == 1)
        rest = [asyncio.create_task(batcher.embed([[i]])) for i in range(2, 7)]
        await asyncio.sleep(0.03)
        assert len(model.batches) == 1
        model.gate.set()
        await asyncio.gather(first, *rest)

    assert run(test, max_wait_ms=1).batches == [[[1]], [[2], [3], [4], [5], [6]]]


def test_an_input_beyond_the_budget_goes_alone_and_order_is_kept() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        await batcher.embed([[1] * 4, [2] * 25, [3] * 4, [4] * 4])

    assert [[ids[0] for ids in batch] for batch in run(test).batches] == [[1], [2], [3, 4]]


def test_a_failing_batch_fails_its_own_requests_only() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        with pytest.raises(ValueError, match="poisoned"):
            await batcher.embed([[-1] * 10, [5] * 10])
        assert batcher.alive
        assert (await batcher.embed([[7] * 10])).tolist() == [[10, 7]]

    run(test)


def test_inputs_of_a_client_that_left_are_not_computed() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.embed([[1] * 10]))
        await until(lambda: len(model.batches) == 1)
        gone = asyncio.create_task(batcher.embed([[2] * 10, [3] * 10]))
        await asyncio.sleep(0.01)
        gone.cancel()
        stays = asyncio.create_task(batcher.embed([[4] * 10]))
        await asyncio.sleep(0.01)
        model.gate.set()
        assert (await stays).tolist() == [[10, 4]]
        await first

    assert [batch[0][0] for batch in run(test).batches] == [1, 4]
