"""Packed texts against Hugging Face's own padded forward pass, values and gradients."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel, XLMRobertaConfig, XLMRobertaModel

from chuxin.models.dropout import Dropout, token_keys
from chuxin.models.packed import Packed, encode, encode_first, moved, pack, pinned, position_count

MAX = 40
SHAPE = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
# One to three tokens, the maximal length, equal neighbours and equal lengths apart.
LENGTHS = (2, 40, 7, 7, 1, 23, 3, 3, 3, 40, 7)


def backbone(kind: str) -> PreTrainedModel:
    torch.manual_seed(5)
    if kind == "bert":
        made = BertModel(BertConfig(**SHAPE, max_position_embeddings=MAX, pad_token_id=0), add_pooling_layer=False)
    else:
        config = XLMRobertaConfig(**SHAPE, max_position_embeddings=MAX + 2, type_vocab_size=1, pad_token_id=1,
                                  layer_norm_eps=1e-5)  # fmt: skip
        made = XLMRobertaModel(config, add_pooling_layer=False)
    for name, parameter in made.named_parameters():  # biases and norms must matter, and attention not be flat
        torch.nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.3)
    return made.eval()


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(2, 90, length) for length in lengths]


def padded(model: PreTrainedModel, ids: list[np.ndarray]) -> torch.Tensor:
    """Hugging Face's last states [T, H] of the real tokens."""
    longest = max(map(len, ids))
    ids_NL = torch.full((len(ids), longest), model.config.pad_token_id)
    for row, text in enumerate(ids):
        ids_NL[row, : len(text)] = torch.from_numpy(text)
    mask_NL = torch.arange(longest) < torch.tensor([len(text) for text in ids])[:, None]
    return model(input_ids=ids_NL, attention_mask=mask_NL.long()).last_hidden_state[mask_NL]


def gradients(model: PreTrainedModel, states_TH: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    (states_TH.float() * torch.randn(states_TH.shape, generator=generator)).mean().mul(10).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def keys(packed: Packed, text_keys: list[int]) -> torch.Tensor:
    lengths_N = torch.tensor(packed.lengths)
    return token_keys(torch.tensor(text_keys, dtype=torch.int32), packed.position_T, lengths_N)


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_are_the_padded_model_s(kind: str, checkpointing: bool) -> None:
    model = backbone(kind)
    assert position_count(model) == MAX
    expected_TH = padded(model, texts())
    expected = gradients(model, expected_TH)
    found_TH = encode(model, pack(texts()), checkpointing=checkpointing)
    found = gradients(model, found_TH)
    torch.testing.assert_close(found_TH, expected_TH, rtol=0, atol=1e-5)
    # None is compared that does not move; a softmax does not see the key's bias.
    assert all(value.abs().max() > 1e-3 for name, value in expected.items() if "key.bias" not in name)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (2, 3), ()])
def test_the_first_states_alone_are_those_of_all(kind: str, lengths: tuple[int, ...]) -> None:
    model, packed = backbone(kind), pack(texts(lengths))
    with torch.inference_mode():
        all_TH = encode(model, packed)
        torch.testing.assert_close(
            encode_first(model, packed), all_TH[packed.bounds_N1[:-1].long()], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("lengths", [(1,), (1, 1), (2, 3), (40,)])
def test_few_and_short_texts(lengths: tuple[int, ...]) -> None:
    model = backbone("xlm-roberta")
    with torch.inference_mode():
        torch.testing.assert_close(
            encode(model, pack(texts(lengths))), padded(model, texts(lengths)), rtol=0, atol=1e-5
        )


def test_bf16_autocast_is_as_near_to_fp32_as_hugging_face_s() -> None:
    # Bound: 1.5 times the padded model's own error, on values and on the whole gradient (here both are 1.0 times), and
    # 3 times on any one weight's (here 0.8 to 1.9).
    model = backbone("xlm-roberta")
    exact_TH = padded(model, texts())
    exact = gradients(model, exact_TH)
    rough = []
    for forward in (lambda: padded(model, texts()), lambda: encode(model, pack(texts()))):
        with torch.autocast("cpu", torch.bfloat16):
            states_TH = forward()
        assert states_TH.dtype == torch.float32  # the last norm's
        rough.append((states_TH.detach(), gradients(model, states_TH)))
    (theirs_TH, theirs), (ours_TH, ours) = rough
    assert 0 < (ours_TH - exact_TH).norm() < 1.5 * (theirs_TH - exact_TH).norm() < 0.05 * exact_TH.norm()
    errors = {
        name: torch.stack([(ours[name] - value).norm(), (theirs[name] - value).norm()])
        for name, value in exact.items() if "key.bias" not in name  # exactly 0
    }  # fmt: skip
    # The last bias' gradient holds no state: what differs is the order of fp32 sums, which one side may hit exactly.
    assert all(one <= 3 * other + 1e-6 * exact[name].norm() for name, (one, other) in errors.items())
    one, other = torch.stack(list(errors.values())).norm(dim=0)
    assert 0 < one < 1.5 * other


def test_checkpointing_keeps_dropout_and_gradients_to_the_bit() -> None:
    model, packed = backbone("xlm-roberta"), pack(texts())
    dropout = Dropout(0.1, keys(packed, list(range(len(LENGTHS)))))
    plain_TH, again_TH = (encode(model, packed, dropout, checkpointing) for checkpointing in (False, True))
    assert torch.equal(plain_TH, again_TH)
    plain, again = gradients(model, plain_TH), gradients(model, again_TH)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_dropout_of_a_text_does_not_see_its_neighbours() -> None:
    model, all_texts = backbone("bert"), texts()
    packed = pack(all_texts)
    together_TH = encode(model, packed, Dropout(0.2, keys(packed, [7 * n for n in range(len(LENGTHS))])))
    whole_TH = encode(model, packed)
    for index in (1, 4, 8):
        alone = pack([all_texts[index]])
        alone_TH = encode(model, alone, Dropout(0.2, keys(alone, [7 * index])))
        begin, end = packed.bounds_N1[index : index + 2].tolist()
        torch.testing.assert_close(alone_TH, together_TH[begin:end], rtol=0, atol=1e-5)
        assert (alone_TH - whole_TH[begin:end]).abs().max() > 0.1


def test_no_text_gives_no_states_and_zero_gradients() -> None:
    # What a rank runs that has fewer micro-batches than the others: every module must still be called.
    model = backbone("xlm-roberta")
    for checkpointing in (False, True):
        model.zero_grad()
        states_TH = encode(model, pack([]), checkpointing=checkpointing)
        assert states_TH.shape == (0, 32)
        states_TH.sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and not parameter.grad.any(), name


def test_what_cannot_be_packed_or_encoded_is_refused() -> None:
    with pytest.raises(ValueError, match="a text of 41 tokens; the model has 40 positions"):
        encode_first(backbone("bert"), pack(texts((41,))))
    with pytest.raises(ValueError, match="text 1 of 3 has no token"):
        pack([[5, 6], [], [7]])
    model = backbone("xlm-roberta")
    with pytest.raises(ValueError, match="41 tokens; the model has 40 positions"):
        encode(model, pack([[5] * 41]))
    for wrong in (-1, 90):  # neither wraps around to a row of the table
        with pytest.raises(IndexError):
            encode(model, pack([[5, wrong]]))


def test_packed_is_what_it_says() -> None:
    packed = pack([[5, 6, 7], np.array([8], np.int32)])
    assert packed.ids_T.tolist() == [5, 6, 7, 8]
    assert packed.position_T.tolist() == [0, 1, 2, 0]
    assert packed.bounds_N1.tolist() == [0, 3, 4]
    assert packed.bounds_N1.dtype == torch.int32 and packed.lengths == (3, 1)
    moved = packed.to("meta")
    assert {tensor.device.type for tensor in moved[:3]} == {"meta"} and moved.lengths == (3, 1)


def test_tensors_of_named_tuples_move_and_nothing_else_changes() -> None:
    class Outer(NamedTuple):
        packed: Packed
        key_N: torch.Tensor
        name: str

    given = Outer(pack([[0, 5, 2], [0, 2]]), torch.zeros(2), "a")
    found = moved(given, "meta")
    assert {tensor.device.type for tensor in (*found.packed[:3], found.key_N)} == {"meta"}
    assert (found.packed.lengths, found.name) == ((3, 2), "a") and type(found.packed) is Packed
    if not torch.cuda.is_initialized():
        assert pinned(given) is given
