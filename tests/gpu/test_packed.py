"""Packed attention on a CUDA device against Hugging Face's padded model in fp32.

Not among `make test`'s paths. It needs torch, transformers and pytest only:

    PYTHONPATH=platform python3 -m pytest -c /dev/null tests/gpu

Bounds of bf16 (autocast over fp32 weights, as training has it) against fp32: last states and the whole gradient within
2 % of their norm and at most 1.5 times as far off as Hugging Face's own model under the same autocast, dense vectors
within a cosine of 0.9995.
"""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel, XLMRobertaConfig, XLMRobertaModel

from chuxin.models.dropout import Dropout, token_keys
from chuxin.models.packed import Packed, encode, pack

MAX = 8192
LENGTHS = (2, 512, 7, 7, 1, 23, 300, 3, 3, 3, 129, 7, 511)
SHAPE = {"vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
         "intermediate_size": 1024, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


def backbone(kind: str = "xlm-roberta") -> PreTrainedModel:
    assert torch.cuda.is_available(), "these tests need a CUDA device"
    torch.manual_seed(5)
    if kind == "bert":
        config = BertConfig(**SHAPE, max_position_embeddings=MAX, pad_token_id=0)
        made = BertModel(config, add_pooling_layer=False)
    else:
        config = XLMRobertaConfig(**SHAPE, max_position_embeddings=MAX + 2, type_vocab_size=1, pad_token_id=1)
        made = XLMRobertaModel(config, add_pooling_layer=False)
    for name, parameter in made.named_parameters():  # attention must not be flat, biases and norms must matter
        torch.nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.06)
    return made.eval().cuda()


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(2, 1000, length) for length in lengths]


def padded(model: PreTrainedModel, ids: list[np.ndarray]) -> torch.Tensor:
    """Hugging Face's last states [T, H] of the real tokens."""
    ids_NL = torch.full((len(ids), max(map(len, ids))), model.config.pad_token_id)
    for row, text in enumerate(ids):
        ids_NL[row, : len(text)] = torch.from_numpy(text)
    mask_NL = (torch.arange(ids_NL.shape[1]) < torch.tensor([len(text) for text in ids])[:, None]).cuda()
    return model(input_ids=ids_NL.cuda(), attention_mask=mask_NL.long()).last_hidden_state[mask_NL]


def packed_states(model: PreTrainedModel, ids: list[np.ndarray], dropout: Dropout | None = None,
                  checkpointing: bool = False) -> torch.Tensor:  # fmt: skip
    return encode(model, pack(ids).to("cuda"), dropout, checkpointing)


def gradient(model: PreTrainedModel, states_TH: torch.Tensor) -> torch.Tensor:
    """All weights' gradients in one row, of a fixed function of the states."""
    model.zero_grad()
    drawn_TH = torch.randn(states_TH.shape, generator=torch.Generator().manual_seed(1)).cuda()
    (states_TH.float() * drawn_TH).mean().mul(100).backward()
    return torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()])


def keys(packed: Packed) -> torch.Tensor:
    lengths_N = packed.bounds_N1.diff().long()
    text_N = torch.arange(len(lengths_N), dtype=torch.int32, device=lengths_N.device)
    return token_keys(text_N, packed.position_T, lengths_N)


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
def test_fp32_is_the_padded_model_s(kind: str) -> None:
    model = backbone(kind)
    expected_TH, found_TH = padded(model, texts()), packed_states(model, texts())
    torch.testing.assert_close(found_TH, expected_TH, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(model, found_TH), gradient(model, expected_TH), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
@pytest.mark.parametrize("lengths", [LENGTHS, (MAX, 100), (512, 512, 512)])
def test_bf16_autocast_is_within_the_bounds(kind: str, lengths: tuple[int, ...]) -> None:
    model = backbone(kind)
    exact_TH = padded(model, texts(lengths))
    exact = gradient(model, exact_TH)
    with torch.autocast("cuda", torch.bfloat16):
        theirs_TH, ours_TH = padded(model, texts(lengths)), packed_states(model, texts(lengths))
    assert ours_TH.dtype == torch.float32
    theirs, ours = gradient(model, theirs_TH), gradient(model, ours_TH)
    compared = {"states": (ours_TH, theirs_TH, exact_TH), "gradient": (ours, theirs, exact)}
    for name, (one, other, right) in compared.items():
        print(f"{kind} {lengths[0]} {name}: off by {distance(one, right):.4f}, padded {distance(other, right):.4f}")
        assert distance(one, right) < min(0.02, 1.5 * distance(other, right))
    first = torch.tensor([0, *np.cumsum(lengths)[:-1]])
    cosines_N = torch.nn.functional.cosine_similarity(ours_TH[first].float(), exact_TH[first])
    assert cosines_N.min() > 0.9995


def test_bf16_weights_run() -> None:
    model = backbone()
    with torch.inference_mode():
        exact_TH = padded(model, texts())
        states_TH = packed_states(model.bfloat16(), texts())
    assert states_TH.dtype == torch.bfloat16
    assert distance(states_TH, exact_TH) < 0.05  # the residual stream is bf16 too


def test_checkpointing_and_dropout() -> None:
    model, packed = backbone(), pack(texts())
    assert torch.equal(keys(packed), keys(packed.to("cuda")).cpu())  # one draw, wherever it is made
    dropout = Dropout(0.1, keys(packed).cuda())
    with torch.autocast("cuda", torch.bfloat16):
        plain_TH, again_TH = (packed_states(model, texts(), dropout, flag) for flag in (False, True))
        whole_TH = packed_states(model, texts())
    assert torch.equal(plain_TH, again_TH)
    assert distance(plain_TH, whole_TH) > 0.1
    # FlashAttention's backward pass adds up in no fixed order.
    assert distance(gradient(model, again_TH), gradient(model, plain_TH)) < 0.005


def test_a_text_does_not_see_its_neighbours() -> None:
    model, all_texts = backbone(), texts()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        together = packed_states(model, all_texts).split(LENGTHS)
        for index in (0, 4, 6):
            assert distance(packed_states(model, [all_texts[index]]), together[index]) < 0.01


@pytest.mark.parametrize("autocast", [False, True])
def test_no_text_gives_no_states_and_zero_gradients(autocast: bool) -> None:
    model = backbone()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        states_TH = packed_states(model, [])
    states_TH.sum().backward()
    assert states_TH.shape == (0, 256)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
