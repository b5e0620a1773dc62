"""RetroMAE against a reference that masks and predicts token by token, on XLM-R and BERT backbones."""

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from chuxin.models import retromae_decoder
from chuxin.models.encoder import M3Model, new_heads
from chuxin.models.retromae import Losses, RetroMAE
from chuxin.models.retromae_masks import Drawing, Texts, hide, lay_out, mask_encoder, visible

VOCAB, MASK, PAD, SPECIAL = 50, 49, 1, (0, 1, 2, 7, 49)
DRAWING = Drawing(7, 0.3, 0.5, VOCAB, MASK, SPECIAL)
SHAPE = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": PAD,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
RAGGED = [np.r_[0, np.random.default_rng(n).integers(8, 48, n), 2] for n in (7, 12, 3, 20)]
RAGGED += [np.array([0, 2]), np.array([0, 9, 7, 10, 2, 2, 11, 12, 2]), np.array([0, 30, 2])]


def new_module(kind: str = "xlm-roberta", dropout: float = 0.0, **changes: int) -> RetroMAE:
    torch.manual_seed(0)
    shape = SHAPE | changes
    backbone = (
        XLMRobertaModel(XLMRobertaConfig(**shape, type_vocab_size=1), add_pooling_layer=False) if kind == "xlm-roberta"
        else BertModel(BertConfig(**shape), add_pooling_layer=False)
    )  # fmt: skip
    width = shape["hidden_size"]
    return RetroMAE(M3Model(backbone, *new_heads(width, 16, 0.02), heads_trained=False), seed=5, dropout=dropout)


def laid(texts: list[np.ndarray], first: int = 0) -> Texts:
    return lay_out(texts, np.arange(first, first + len(texts), dtype=np.int32), DRAWING)


def gradients(module: RetroMAE, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def reference(module: RetroMAE, texts: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder's and decoder's losses [N], text by text and token by token, from the same draws."""
    backbone = module.model.backbone
    embeddings, table = backbone.embeddings, backbone.embeddings.word_embeddings.weight
    encoder, decoder = [], []
    for number, tokens in enumerate(texts):
        own = laid([tokens], number)
        ids, size = own.packed.ids_T, len(tokens)
        shown, masked = mask_encoder(own)
        states = backbone(input_ids=shown[None], attention_mask=torch.ones(1, size)).last_hidden_state[0]
        encoder.append(-sum((log_probability(module, states[i], table, ids[i]) for i in masked), torch.zeros(())))
        memory = torch.cat([states[:1], embeddings(input_ids=ids[None])[0, 1:]])
        queries = embeddings(inputs_embeds=states[:1].expand(1, size, -1))[0]
        maskable = [i for i in range(1, size) if tokens[i] not in SPECIAL]
        order = [i for i in range(size) if i not in maskable] + maskable
        total = torch.zeros(())
        for rank, i in enumerate(maskable):
            seen = visible(hide(own.key_N[0], size, len(maskable), 0.5), rank, rank + 1)[0]
            memory_seen = memory[[order[j] for j in range(size) if seen[j]]]
            total = total - log_probability(module, layer(module.decoder, queries[i], memory_seen), table, ids[i])
        decoder.append(total)
    return torch.stack(encoder), torch.stack(decoder)


def log_probability(module: RetroMAE, state, table, token) -> torch.Tensor:
    head = module.head
    hidden = torch.nn.functional.gelu(state @ head.dense.weight.T + head.dense.bias)
    norm = head.layer_norm
    hidden = (hidden - hidden.mean()) / torch.sqrt(hidden.var(unbiased=False) + norm.eps) * norm.weight + norm.bias
    logits = hidden @ table.T + head.bias
    return logits[token] - torch.logsumexp(logits, 0)


def layer(decoder, query, memory_seen) -> torch.Tensor:
    size = len(query) // decoder.heads
    mixed = []
    for head in range(decoder.heads):
        part = slice(head * size, (head + 1) * size)
        q, k, v = decoder.query(query)[part], decoder.key(memory_seen)[:, part], decoder.value(memory_seen)[:, part]
        mixed.append(torch.softmax(k @ q / size**0.5, 0) @ v)
    state = decoder.attention_norm(query + decoder.output(torch.cat(mixed)))
    return decoder.norm(state + decoder.down(torch.nn.functional.gelu(decoder.up(state))))


@pytest.mark.parametrize("tile", [4, 1024])
@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
def test_losses_and_gradients_equal_a_token_by_token_reference(
    kind: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retromae_decoder, "TILE", tile)
    module = new_module(kind)
    with torch.no_grad():
        module.head.bias.normal_(generator=torch.Generator().manual_seed(1))
    losses: Losses = module(laid(RAGGED))
    encoder_N, decoder_N = reference(module, RAGGED)
    for value, expected in zip(losses, (encoder_N.sum(), decoder_N.sum(), encoder_N, decoder_N), strict=True):
        torch.testing.assert_close(value, expected.detach() if value.dim() else expected, rtol=1e-5, atol=1e-5)
    # Only special tokens: nothing to predict.
    assert losses.encoder_N[4] == losses.decoder_N[4] == 0.0
    wanted = gradients(module, encoder_N.sum() + 0.5 * decoder_N.sum())
    own = gradients(module, losses.encoder + 0.5 * losses.decoder)
    assert own.keys() == wanted.keys()
    missing = {name for name, _ in module.named_parameters()} - own.keys()
    assert all(name.startswith(("model.sparse_linear", "model.colbert_linear")) for name in missing)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5, msg=name)


def test_micro_batches_add_up_to_the_whole_under_dropout() -> None:
    module = new_module(dropout=0.1).train()
    whole = gradients(module, sum(module(laid(RAGGED))[:2]))
    parts = [gradients(module, sum(module(laid([text], n))[:2])) for n, text in enumerate(RAGGED)]
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, sum(part[name] for part in parts), rtol=1e-4, atol=1e-5)


def test_dropout_follows_from_the_key_and_stops_in_evaluation() -> None:
    module = new_module(dropout=0.3).train()
    first, again = (module(laid(RAGGED)) for _ in range(2))
    assert torch.equal(first.decoder, again.decoder)
    assert not torch.equal(first.decoder, module(laid(RAGGED, 50)).decoder)
    texts = laid(RAGGED)
    encoder, query, memory = module._dropouts(texts)
    assert not torch.equal(encoder.key_T[texts.maskable_M], query.key_T)
    assert not torch.equal(encoder.key_T, memory.key_T)
    module.eval()
    assert module._dropouts(texts) == (None, None, None)
    torch.testing.assert_close(module(texts), new_module()(texts))


def test_a_text_of_special_tokens_only_costs_nothing_and_reaches_every_weight() -> None:
    # Under ZeRO a weight without a gradient on one rank is a rank that the others wait for.
    module = new_module()
    own = gradients(module, sum(module(laid([np.array([0])]))[:2]))
    full = gradients(module, sum(module(laid(RAGGED))[:2]))
    assert own.keys() == full.keys()
    assert not any(gradient.any() for gradient in own.values())


def test_the_decoder_goes_on_from_saved_weights() -> None:
    module, other = new_module(), new_module()
    with torch.no_grad():
        for parameter in module.decoder.parameters():
            parameter.add_(1.0)
    state = module.extra_state_dict()
    assert state and not any(key.startswith("model.") for key in state)
    other.load_extra_state_dict(state)
    assert torch.equal(other.decoder.query.weight, module.decoder.query.weight)


@pytest.mark.parametrize("tile", [4, 1024])
def test_bf16_stays_near_fp32(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retromae_decoder, "TILE", tile)
    module = new_module()
    exact, texts = module(laid(RAGGED)), laid(RAGGED)
    wanted = gradients(module, exact.encoder + exact.decoder)
    with torch.autocast("cpu", torch.bfloat16):
        losses = module(texts)
    assert {value.dtype for value in losses} == {torch.float32}
    torch.testing.assert_close(losses.encoder, exact.encoder, rtol=5e-3, atol=0.0)
    torch.testing.assert_close(losses.decoder, exact.decoder, rtol=5e-3, atol=0.0)
    own = gradients(module, losses.encoder + losses.decoder)
    assert own.keys() == wanted.keys()
    own, wanted = (torch.cat([found[name].flatten() for name in sorted(found)]) for found in (own, wanted))
    assert torch.nn.functional.cosine_similarity(own, wanted, dim=0) > 0.999


def test_the_names_of_saved_weights_stay() -> None:
    # A retromae.pt of an earlier pretraining holds these.
    linear = ("query", "key", "value", "output", "attention_norm", "up", "down", "norm")
    names = {f"decoder.{name}.{kind}" for name in linear for kind in ("weight", "bias")}
    names |= {"head.dense.weight", "head.dense.bias", "head.layer_norm.weight", "head.layer_norm.bias", "head.bias"}
    assert new_module().extra_state_dict().keys() == names


def test_8192_tokens_need_no_matrix_of_all_pairs() -> None:
    length, heads = 8192, 2
    module = new_module(hidden_size=8, num_attention_heads=heads, num_hidden_layers=0,
                        max_position_embeddings=length + 2)  # fmt: skip
    text = np.r_[0, np.random.default_rng(1).integers(8, 48, length - 2), 2]
    live = Live()
    with live:
        sum(module(laid([text]))[:2]).backward()
    # One tile's mask is 8 MB, and 32 MB in fp32 where a kernel wants it so; all pairs would be 67 MB of bool.
    # Measured: 47 MB at the peak.
    assert live.peak < 2 * retromae_decoder.TILE * length * 4 < heads * length * length * 4 / 7
    assert live.largest <= retromae_decoder.TILE * length * 4


class Live(TorchDispatchMode):
    """Bytes of all storages that operators made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.storages, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = StorageWeakRef(storage), len(storage)
        self.storages = {key: item for key, item in self.storages.items() if not item[0].expired()}
        sizes = [size for _, size in self.storages.values()]
        self.peak, self.largest = max(self.peak, sum(sizes)), max(self.largest, *sizes)
        return out
