"""RetroMAE against a reference that masks and predicts token by token, on XLM-R and BERT backbones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from chuxin.models.encoder import M3Model, new_heads
from chuxin.models.retromae import Drawing, RetroMAE, count_masked, draw_masks

VOCAB, MASK, PAD, SPECIAL = 50, 49, 1, (0, 1, 2, 49)
DRAWING = Drawing(7, 0.3, 0.5, VOCAB, MASK, PAD, SPECIAL)
SHAPE = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": PAD,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


def text(length: int, seed: int) -> np.ndarray:
    return np.r_[0, np.random.default_rng(seed).integers(3, 48, length - 2), 2].astype(np.int32)


def new_module(kind: str) -> RetroMAE:
    torch.manual_seed(0)
    backbone = (
        XLMRobertaModel(XLMRobertaConfig(**SHAPE, type_vocab_size=1), add_pooling_layer=False) if kind == "xlm-roberta"
        else BertModel(BertConfig(**SHAPE), add_pooling_layer=False)
    )  # fmt: skip
    return RetroMAE(M3Model(backbone, *new_heads(16, 16, 0.02), heads_trained=False), seed=5, dropout=0.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(0, 5), st.sampled_from([0.15, 0.3, 0.5, 0.7]))
def test_shares_are_exact_and_special_tokens_always_visible(length: int, batch: int, share: float) -> None:
    drawing = DRAWING._replace(encoder_probability=share, decoder_probability=share)
    masks = draw_masks([text(length, 1)], [(0, batch, 3)], drawing)
    maskable = np.arange(1, length - 1)
    assert int(masks.masked_BL.sum()) == count_masked(len(maskable), share)
    assert masks.predicted_BL[0].nonzero().flatten().tolist() == maskable.tolist()
    visible = masks.visible_BLL[0].numpy()
    assert visible[:, [0, length - 1]].all() and visible[[0, length - 1]].all()
    for i in maskable:
        assert not visible[i, i]
        assert (~visible[i, maskable]).sum() == count_masked(len(maskable), share)
    changed = masks.encoder_ids_BL[0] != masks.input_ids_BL[0]
    assert not changed[~masks.masked_BL[0]].any()


def test_counts_of_masked_tokens() -> None:
    assert [count_masked(n, 0.3) for n in (0, 1, 2, 10, 510, 8190)] == [0, 1, 1, 3, 153, 2457]


def test_masks_depend_on_the_place_and_not_on_the_neighbours() -> None:
    alone = draw_masks([text(20, 1)], [(1, 2, 3)], DRAWING)
    beside = draw_masks([text(33, 2), text(20, 1)], [(1, 2, 2), (1, 2, 3)], DRAWING)
    for name in ("input_ids_BL", "encoder_ids_BL", "masked_BL", "predicted_BL"):
        assert torch.equal(getattr(alone, name)[0], getattr(beside, name)[1, :20]), name
    assert torch.equal(alone.visible_BLL[0], beside.visible_BLL[1, :20, :20])
    assert not beside.visible_BLL[1, :, 20:].any() and beside.visible_BLL[1, 20:, 0].all()
    for place in ((1, 2, 4), (1, 3, 3), (2, 2, 3)):
        other = draw_masks([text(20, 1)], [place], DRAWING)
        assert not torch.equal(alone.visible_BLL, other.visible_BLL)
        assert not torch.equal(alone.masked_BL, other.masked_BL) or place != (2, 2, 3)


def test_replacements_are_mostly_the_mask_token() -> None:
    masks = draw_masks([text(40, i) for i in range(100)], [(0, 0, i) for i in range(100)], DRAWING)
    shown = masks.encoder_ids_BL[masks.masked_BL]
    kept = (shown == masks.input_ids_BL[masks.masked_BL]).float().mean()
    assert abs((shown == MASK).float().mean() - 0.8) < 0.04 and abs(kept - 0.1) < 0.04


def test_every_other_token_is_visible_somewhere() -> None:
    masks = draw_masks([text(12, 1)] * 40, [(0, 0, i) for i in range(40)], DRAWING)
    often = masks.visible_BLL[:, 1:-1, 1:-1].float().mean(0)
    assert not often.diagonal().any()
    assert (often.fill_diagonal_(0.5) - 0.5).abs().max() < 0.35


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
def test_losses_equal_a_token_by_token_reference(kind: str) -> None:
    module = new_module(kind).eval()
    texts = [text(9, 1), text(14, 2), text(5, 3)]
    masks = draw_masks(texts, [(0, 0, i) for i in range(3)], DRAWING)
    mlm, rebuilt = module(masks)
    table = module.model.backbone.embeddings.word_embeddings.weight
    expected_mlm = expected_rebuilt = torch.zeros(())
    for row, tokens in enumerate(texts):
        size = len(tokens)
        ids = torch.tensor(tokens[None].astype(np.int64))
        shown = masks.encoder_ids_BL[row : row + 1, :size]
        states = module.model.backbone(input_ids=shown, attention_mask=torch.ones_like(shown)).last_hidden_state[0]
        embeddings = module.model.backbone.embeddings
        cls = states[0]
        memory = torch.cat([cls[None], embeddings(input_ids=ids)[0, 1:]])
        queries = embeddings(inputs_embeds=cls.expand(1, size, -1))[0]
        for i in range(size):
            if masks.masked_BL[row, i]:
                expected_mlm = expected_mlm - reference_log_probability(module, states[i], table, ids[0, i])
            if 0 < i < size - 1:
                seen = [j for j in range(size) if masks.visible_BLL[row, i, j]]
                state = reference_layer(module.decoder, queries[i], memory[seen])
                expected_rebuilt = expected_rebuilt - reference_log_probability(module, state, table, ids[0, i])
    torch.testing.assert_close(mlm, expected_mlm, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rebuilt, expected_rebuilt, rtol=1e-5, atol=1e-5)


def reference_log_probability(module: RetroMAE, state, table, token) -> torch.Tensor:
    head = module.head
    hidden = torch.nn.functional.gelu(state @ head.dense.weight.T + head.dense.bias)
    hidden = (hidden - hidden.mean()) / torch.sqrt(hidden.var(unbiased=False) + head.layer_norm.eps)
    logits = hidden @ table.T + head.bias
    return logits[token] - torch.logsumexp(logits, 0)


def reference_layer(decoder, query, memory_seen) -> torch.Tensor:
    size = len(query) // decoder.heads
    mixed = []
    for head in range(decoder.heads):
        part = slice(head * size, (head + 1) * size)
        q, k, v = decoder.query(query)[part], decoder.key(memory_seen)[:, part], decoder.value(memory_seen)[:, part]
        mixed.append(torch.softmax(k @ q / size**0.5, 0) @ v)
    state = decoder.attention_norm(query + decoder.output(torch.cat(mixed)))
    return decoder.norm(state + decoder.down(torch.nn.functional.gelu(decoder.up(state))))


def test_gradients_reach_every_weight_but_the_heads_and_padding_adds_nothing() -> None:
    module = new_module("xlm-roberta")
    texts, places = [text(9, 1), text(14, 2)], [(0, 0, 0), (0, 0, 1)]
    sum(module(draw_masks(texts, places, DRAWING))).backward()
    together = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    missing = {name for name, _ in module.named_parameters()} - set(together)
    assert all(name.startswith(("model.sparse_linear", "model.colbert_linear")) for name in missing)
    module.zero_grad()
    for one, place in zip(texts, places, strict=True):
        sum(module(draw_masks([one], [place], DRAWING))).backward()
    for name, gradient in together.items():
        torch.testing.assert_close(dict(module.named_parameters())[name].grad, gradient, rtol=1e-4, atol=1e-5)


def test_a_text_of_special_tokens_only_costs_nothing() -> None:
    module = new_module("xlm-roberta")
    losses = module(draw_masks([np.array([0, 2])], [(0, 0, 0)], DRAWING))
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    sum(losses).backward()


def test_the_decoder_goes_on_from_saved_weights() -> None:
    module, other = new_module("xlm-roberta"), new_module("xlm-roberta")
    with torch.no_grad():
        for parameter in module.decoder.parameters():
            parameter.add_(1.0)
    state = module.extra_state_dict()
    assert state and not any(key.startswith("model.") for key in state)
    other.load_extra_state_dict(state)
    assert torch.equal(other.decoder.query.weight, module.decoder.query.weight)
