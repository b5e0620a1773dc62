"""A RetroMAE step on one CPU thread, masks included: chuxin's against the research step (research_retromae.py).

Forward and backward pass in fp32 of one text, no optimizer. Equal means: fed chuxin's masks, the research model has
the same loss (1e-4) and the same gradient of every weight both have (1e-4 of the largest); on masks of its own its
loss is within 5 % (other tokens are masked).
"""

import functools
import random

import numpy as np
import torch
from research_retromae import Collated, Collator, Model
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel

from chuxin.models.encoder import M3Model, new_heads
from chuxin.models.retromae import RetroMAE
from chuxin.models.retromae_masks import Drawing, hide, lay_out, mask_encoder, visible

SETTINGS = {
    "texts": 1, "tokens": 512, "vocabulary": 250_002, "hidden": 64, "layers": 2, "heads": 4, "intermediate": 256,
    "dtype": "float32", "dropout": 0.0, "threads": 1, "seed": 3,
}  # fmt: skip
MASK, SPECIAL = 250_001, (0, 1, 2, 3, 250_001)
DRAWING = Drawing(3, 0.3, 0.5, SETTINGS["vocabulary"], MASK, SPECIAL)
TABLE = "lm.roberta.embeddings.word_embeddings.weight"
Result = tuple[float, dict[str, torch.Tensor]]


@functools.cache
def text() -> np.ndarray:
    ids = np.random.default_rng(SETTINGS["seed"]).integers(4, MASK, SETTINGS["tokens"] - 2)
    return np.r_[0, ids, 2].astype(np.int32)


@functools.cache
def research() -> Model:
    torch.set_num_threads(SETTINGS["threads"])
    torch.manual_seed(SETTINGS["seed"])
    random.seed(SETTINGS["seed"])
    config = XLMRobertaConfig(
        vocab_size=SETTINGS["vocabulary"], hidden_size=SETTINGS["hidden"], num_hidden_layers=SETTINGS["layers"],
        num_attention_heads=SETTINGS["heads"], intermediate_size=SETTINGS["intermediate"],
        max_position_embeddings=SETTINGS["tokens"] + 2, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Model(XLMRobertaForMaskedLM(config)).train()


@functools.cache
def module() -> RetroMAE:
    """The same weights in chuxin's model."""
    model = research()
    backbone = XLMRobertaModel(model.lm.config, add_pooling_layer=False)
    backbone.load_state_dict(model.lm.roberta.state_dict())
    own = RetroMAE(M3Model(backbone, *new_heads(SETTINGS["hidden"], 16, 0.02), heads_trained=False), 1, 0.0)
    head = {f"head.{name}": value for name, value in model.lm.lm_head.state_dict().items()}
    decoder = {f"decoder.{name}": value for name, value in model.decoder.state_dict().items()}
    extra = {name: value for name, value in {**head, **decoder}.items() if not name.startswith("head.decoder.")}
    own.load_extra_state_dict(extra)
    return own.train()


@functools.cache
def collator() -> Collator:
    return Collator([f"▁{number}" for number in range(SETTINGS["vocabulary"])], MASK, SPECIAL)


def ours() -> Result:
    own = module()
    own.zero_grad()
    texts = lay_out([text()], np.zeros(1, np.int32), DRAWING)
    losses = own(texts)
    loss = losses.encoder / sum(texts.masked) + losses.decoder / sum(texts.maskable)
    loss.backward()
    named = {name.replace("model.backbone.", "lm.roberta.").replace("head.", "lm.lm_head."): parameter.grad
             for name, parameter in own.named_parameters() if parameter.grad is not None}  # fmt: skip
    return loss.item(), named


def theirs(batch: Collated | None = None) -> Result:
    model = research()
    model.zero_grad()
    loss = model(batch or collator()(text().tolist()))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    tied = gradients.pop("lm.lm_head.decoder.weight", None)  # whichever of its two names comes first
    return loss.item(), gradients if tied is None else {**gradients, TABLE: tied}


def same_masks() -> Collated:
    """Chuxin's masks as the research model takes them."""
    size = SETTINGS["tokens"]
    texts = lay_out([text()], np.zeros(1, np.int32), DRAWING)
    ids = texts.packed.ids_T[None]
    shown, masked = mask_encoder(texts)
    seen = torch.ones(1, size, size, dtype=torch.int64)
    hidden = hide(texts.key_N[0], size, size - 2, DRAWING.decoder_probability)
    order = [0, *range(2, size), 1]  # special tokens stood first
    seen[0, 1:-1] = visible(hidden, 0, size - 2)[:, order].long()
    encoder_labels = torch.full_like(ids, -100).index_copy(1, masked, ids[:, masked])
    labels = ids.clone()
    labels[:, 0] = labels[:, -1] = -100
    return Collated(shown[None], encoder_labels, ids, seen, labels)


def equal(a: Result, b: Result) -> bool:
    loss, gradients = theirs(same_masks())
    if abs(a[0] - loss) > 1e-4 or abs(b[0] - loss) > 0.05 * loss or a[1].keys() != gradients.keys():
        return False
    return all((a[1][name] - own).abs().max() <= 1e-4 * max(own.abs().max(), 1e-2) for name, own in gradients.items())
