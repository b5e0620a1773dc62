import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from chuxin.models.checkpoint import load_model
from chuxin.models.encoder import M3Model, new_heads
from chuxin.models.packed import pack

TEXTS = [[0, 260, 261, 2], [0, 2], list(range(4, 68)), [0, 270, 260, 2]]


def test_outputs_follow_bge_m3_s_definition(tiny_model: str) -> None:
    model, reference = load_model(tiny_model), AutoModel.from_pretrained(tiny_model, add_pooling_layer=False).eval()
    with torch.inference_mode():
        outputs = model(pack(TEXTS), heads=True)
        begin = 0
        for row, text in enumerate(TEXTS):
            states_LH = reference(input_ids=torch.tensor([text])).last_hidden_state[0]
            expected = (
                states_LH[0] / states_LH[0].norm(),
                torch.relu(states_LH @ model.sparse_linear.weight[0] + model.sparse_linear.bias),
                torch.nn.functional.normalize(
                    states_LH @ model.colbert_linear.weight.T + model.colbert_linear.bias, dim=-1
                ),
            )
            end = begin + len(text)
            found = outputs.dense_NH[row], outputs.weight_T[begin:end], outputs.vector_TD[begin:end]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            begin = end


def test_heads_only_when_asked(tiny_model: str) -> None:
    model = load_model(tiny_model)
    with torch.inference_mode():
        plain, heads = model(pack(TEXTS)), model(pack(TEXTS), heads=True)
    assert plain.weight_T is None and plain.vector_TD is None
    assert torch.equal(plain.dense_NH, heads.dense_NH)


@pytest.mark.parametrize("autocast", [False, True])
def test_outputs_are_fp32_whatever_the_weights_are(tiny_model: str, autocast: bool) -> None:
    model = load_model(tiny_model, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = model(pack(TEXTS), heads=True)
    assert {tensor.dtype for tensor in outputs} == {torch.float32}
    torch.testing.assert_close(outputs.dense_NH.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(outputs.vector_TD.norm(dim=-1), torch.ones(sum(map(len, TEXTS))))


def test_no_text_reaches_every_weight(tiny_model: str) -> None:
    model = load_model(tiny_model)
    outputs = model(pack([]), heads=True)
    assert [tuple(tensor.shape) for tensor in outputs] == [(0, 32), (0,), (0, 32)]
    sum(tensor.sum() for tensor in outputs).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_max_length_knows_the_position_offset(tiny_model: str) -> None:
    assert load_model(tiny_model).max_length == 64
    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=8, max_position_embeddings=20)  # fmt: skip
    assert M3Model(BertModel(config, add_pooling_layer=False), *new_heads(8, 8, 0.02), False).max_length == 20


def test_heads_are_the_same_every_time_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = new_heads(16, 8, 0.02), new_heads(16, 8, 0.02)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert not one.bias.any()
    assert first[1].weight.shape == (8, 16)
    torch.manual_seed(0)
    torch.nn.Linear(16, 1), torch.nn.Linear(16, 8)
    assert 0.01 < first[1].weight.std() < 0.03
    torch.random.set_rng_state(before)
