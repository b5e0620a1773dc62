"""FLOPs against counting the products of a real encoder, and a rate that is one."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import XLMRobertaConfig, XLMRobertaModel

from chuxin.training.speed import Work, matmul_rate, measure_work


def test_flops_are_those_that_torch_counts() -> None:
    config = XLMRobertaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                              intermediate_size=64, max_position_embeddings=60, pad_token_id=1,
                              attn_implementation="eager")  # fmt: skip
    model = XLMRobertaModel(config, add_pooling_layer=False).eval()
    work = measure_work(model, 3, 32, torch.float32)
    with FlopCounterMode(display=False) as counter:
        ids = torch.arange(2, 42)[None]
        model(ids).last_hidden_state.sum().backward()
    assert work.flops([np.array([40])]) == pytest.approx(counter.get_total_flops(), rel=0.02)
    twice = work.flops([np.array([40]), np.array([40], np.int64)])
    assert twice == pytest.approx(2 * work.flops([np.array([40])]))


def test_frozen_layers_do_not_count() -> None:
    module = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 5))
    module[1].requires_grad_(False)
    assert measure_work(module, 0, 0, torch.float32).linear == 100


def test_mfu_is_flops_over_what_all_ranks_could_do() -> None:
    work = Work(linear=1000, layers=0, hidden=0, rate=6000.0)
    assert work.share([np.array([1]), np.array([1])], seconds=2.0) == pytest.approx(0.5)


def test_the_rate_is_that_of_a_processor() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e15
