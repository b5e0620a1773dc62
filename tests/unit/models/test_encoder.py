import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from chuxin.models.checkpoint import load_model
from chuxin.models.encoder import M3Model, new_heads


def test_dense_is_the_first_state_of_length_one(tiny_model: str) -> None:
    ids, mask = torch.tensor([[0, 260, 261, 2]]), torch.ones(1, 4, dtype=torch.long)
    model, reference = (
        load_model(tiny_model),
        AutoModel.from_pretrained(tiny_model, add_pooling_layer=False).eval(),
    )
    with torch.inference_mode():
        state = reference(input_ids=ids, attention_mask=mask).last_hidden_state[0, 0]
        dense = model.dense(model(ids, mask))[0]
    torch.testing.assert_close(dense, state / state.norm(), rtol=0, atol=1e-6)


def test_padding_changes_nothing(tiny_model: str) -> None:
    model = load_model(tiny_model)
    ids, mask = torch.tensor([[0, 260, 261, 2]]), torch.ones(1, 4, dtype=torch.long)
    longer = torch.nn.functional.pad(ids, (0, 5), value=1), torch.nn.functional.pad(mask, (0, 5))
    with torch.inference_mode():
        torch.testing.assert_close(
            model.dense(model(*longer)), model.dense(model(ids, mask)), rtol=0, atol=1e-6
        )


def test_dense_is_fp32_whatever_the_weights_are(tiny_model: str) -> None:
    model = load_model(tiny_model, dtype=torch.bfloat16)
    with torch.inference_mode():
        dense = model.dense(model(torch.tensor([[0, 260, 2]]), torch.ones(1, 3, dtype=torch.long)))
    assert dense.dtype == torch.float32
    assert dense.norm().item() == pytest.approx(1, abs=1e-6)


def test_max_length_knows_the_position_offset(tiny_model: str) -> None:
    model = load_model(tiny_model)
    assert model.max_length == 64
    with torch.inference_mode():
        model(torch.full((1, 64), 260), torch.ones(1, 64, dtype=torch.long))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, 65), 260), torch.ones(1, 65, dtype=torch.long))
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
