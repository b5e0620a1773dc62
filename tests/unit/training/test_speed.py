"""FLOPs against counting the products of a real encoder, and a rate that is one."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import XLMRobertaConfig, XLMRobertaModel

from chuxin.models.packed import pack
from chuxin.models.reranker import Classifier, CrossEncoder, pair_ids
from chuxin.training.plan_reader import Batch
from chuxin.training.speed import Work, matmul_rate, measure_work

ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


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


def test_a_cross_encoder_reads_pairs() -> None:
    """FLOPs of a batch against those that torch counts of the pairs' own forward and backward pass."""
    config = XLMRobertaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                              intermediate_size=64, max_position_embeddings=60, pad_token_id=1)  # fmt: skip
    model = CrossEncoder(XLMRobertaModel(config, add_pooling_layer=False), Classifier(32))
    groups = [[9, 21, 12], [5, 30, 8, 14]]  # a query, then its passages
    texts = [[np.r_[0, np.full(length - 2, 5), 2] for length in group] for group in groups]
    pairs = [pair_ids(query, passage) for query, *passages in texts for passage in passages]
    lengths = (np.array(sum(groups, [])), np.zeros(0, np.int64)), (np.array([3, 4]), np.zeros(0, np.int64))
    batch = Batch(1, 0, 0, 2, pa.table({}), *lengths)
    assert [tokens.tolist() for tokens in batch.pairs_of_ranks()] == [list(map(len, pairs)), []]
    assert [tokens.tolist() for tokens in batch.groups_of_ranks()] == [[30 + 21, 35 + 13 + 19], []]
    work = measure_work(model, 3, 32, torch.float32)._replace(rate=1e6)
    with FlopCounterMode(display=False) as counter:
        for pair in pairs:
            model(pack([pair])).sum().backward()
    attention = 12.0 * 3 * 32 * sum(len(pair) ** 2 for pair in pairs)  # the CPU's kernel is not counted
    rest = counter.get_total_flops() - sum(counter.get_flop_counts()["Global"].get(op, 0) for op in ATTENTION)
    assert work.mfu(batch, 0.5) * (0.5 * 1e6 * 2) == pytest.approx(rest + attention, rel=0.02)
    assert work._replace(pairs=False).mfu(batch, 0.5) < 0.8 * work.mfu(batch, 0.5)


def test_frozen_layers_do_not_count() -> None:
    module = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 5))
    module[1].requires_grad_(False)
    assert measure_work(module, 0, 0, torch.float32).linear == 100


def test_mfu_is_flops_over_what_all_ranks_could_do() -> None:
    work = Work(linear=1000, layers=0, hidden=0, rate=6000.0)
    assert work.share([np.array([1]), np.array([1])], seconds=2.0) == pytest.approx(0.5)


def test_the_rate_is_that_of_a_processor() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e15
