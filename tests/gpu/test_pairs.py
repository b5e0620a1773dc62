"""A cross-encoder on a CUDA device: the CPU's scores, and a device that runs out of memory.

    PYTHONPATH=platform python3 -m pytest -c /dev/null tests/gpu
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from chuxin.encoding.pairs import score_pairs
from chuxin.models.packed import pack
from chuxin.models.reranker import Classifier, CrossEncoder

WIDTH = 256


def cross_encoder() -> CrossEncoder:
    torch.manual_seed(5)
    config = XLMRobertaConfig(vocab_size=1000, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4,
                              intermediate_size=1024, type_vocab_size=1, max_position_embeddings=8194)  # fmt: skip
    classifier = Classifier(WIDTH)
    classifier.draw(6, 0.3)
    return CrossEncoder(XLMRobertaModel(config, add_pooling_layer=False), classifier).eval()


def pairs(count: int, longest: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(3, 1000, rng.integers(longest // 4, longest)) for _ in range(count)]


@pytest.fixture
def little_memory() -> Iterator[int]:
    """Bytes that the process may hold on the device: its CUDA context aside, 256 MiB."""
    limit = 2**28
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_scores_are_the_cpu_s() -> None:
    assert torch.cuda.is_available(), "these tests need a CUDA device"
    model, asked = cross_encoder(), pairs(200, 200)
    on_cpu = score_pairs(model, asked, 4096)
    np.testing.assert_allclose(score_pairs(model.cuda(), asked, 4096, "cuda"), on_cpu, atol=1e-4)
    half = score_pairs(model.bfloat16(), asked, 4096, "cuda")
    assert np.corrcoef(half, on_cpu)[0, 1] > 0.99


@pytest.mark.usefixtures("little_memory")
def test_a_pass_that_does_not_fit_is_halved() -> None:
    model, asked = cross_encoder().cuda(), pairs(400, 512)
    small = score_pairs(model, asked, 2048, "cuda")
    with pytest.raises(torch.OutOfMemoryError), torch.inference_mode():
        model.score(pack(asked).to("cuda"))
    torch.cuda.empty_cache()
    np.testing.assert_allclose(score_pairs(model, asked, 10**6, "cuda"), small, atol=1e-5)


def test_one_pair_that_does_not_fit_says_so(little_memory: int) -> None:
    model = cross_encoder().cuda()
    filled = torch.empty(little_memory - 2**25 - torch.cuda.memory_reserved(), dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        score_pairs(model, [np.full(8000, 5)], 8192, "cuda")
    del filled
