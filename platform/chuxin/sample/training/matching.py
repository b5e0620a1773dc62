"""Layers drawn so that tokens find equal ones before them, from which the sample LLM learns what a document answers.

From small independent draws attention does not come to compare tokens within the minutes that this model may be
trained (reading.py); Trockman & Kolter 2023 (Mimetic Initialization of Self-Attention Layers) found products of such
weights in trained models. Two layers, both added so that little of what passes through them changes:

* the first reads embeddings: each head tells whether a token occurred before;
* the other attends to equal states, whatever they have become by then.

Places of a head: rotary attention turns each by an angle of its own a token. What has to be equal wherever it stands
uses the slow ones; the fast ones, whose sum is large at distance 0 alone, keep a token from finding itself.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

SLOW = 4e-3  # radians a token: three quarters of a turn over the longest document
FAST = 0.02  # and from here on a place takes part in telling a token from itself
EQUAL = 20.0  # the score of an equal token, which others reach by four of their deviations
NONE = 16.0  # the score of the chat's first token, where no token is equal
ITSELF = 1.0  # what each fast place takes off a token's own score; there are 14
FLAG, QUIET = 0.25, 0.5  # how large what a head adds is, beside states of about 1.4 and 47


@torch.no_grad()
def draw(model: Qwen2ForCausalLM, layers: Sequence[int], first: int) -> None:
    """Draws the two layers' weights.

    Args:
        model: Is changed; its embeddings should be what they are to be.
        layers: Numbers of the layers, the first 0: it reads embeddings.
        first: Id of the chat's first token.
    """
    occurred, equal = (model.model.layers[number] for number in layers)
    angles_D = model.model.rotary_emb.inv_freq
    width = model.config.hidden_size
    first_H = model.model.embed_tokens.weight[first]
    _clear(occurred)
    heads = occurred.self_attn.head_dim
    unit_H = first_H / first_H.norm() / width**0.5  # 1 on the first token, as the layer's norm scales it
    _match(occurred, angles_D)
    attention = occurred.self_attn
    none = len(angles_D) - 1  # the slowest place tells the first token
    for start in range(0, len(attention.q_proj.weight), heads):
        attention.q_proj.bias[start + none] = (NONE * heads**0.5) ** 0.5
        attention.k_proj.weight[start + none] = unit_H * attention.q_proj.bias[start + none]
        sign = nn.functional.normalize(torch.randn(heads), dim=0) * width**0.5
        attention.v_proj.bias[start : start + heads] = sign
        attention.v_proj.weight[start : start + heads] = -2 * sign[:, None] * unit_H
    nn.init.orthogonal_(attention.o_proj.weight, FLAG * 1.4 / width**0.5)
    _clear(equal)
    _match(equal, angles_D)
    nn.init.orthogonal_(equal.self_attn.v_proj.weight)
    nn.init.orthogonal_(equal.self_attn.o_proj.weight, QUIET)


def _clear(layer: Qwen2DecoderLayer) -> None:
    attention = layer.self_attn
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        part.weight.zero_()
        part.bias.zero_()
    layer.mlp.down_proj.weight.zero_()


def _match(layer: Qwen2DecoderLayer, angles_D: torch.Tensor) -> None:
    """Gives each head equal queries and keys of its own, orthonormal, in the slow places but the slowest."""
    attention = layer.self_attn
    slow = torch.nonzero(angles_D < SLOW).flatten()[:-1]
    places = torch.cat([slow, slow + len(angles_D)])
    fast = torch.nonzero(angles_D > FAST).flatten()
    gain = (EQUAL * attention.head_dim**0.5 / len(places)) ** 0.5
    for start in range(0, len(attention.q_proj.weight), attention.head_dim):
        drawn = nn.init.orthogonal_(torch.empty(len(places), attention.q_proj.weight.shape[1]), gain)
        attention.q_proj.weight[start + places] = drawn
        attention.k_proj.weight[start + places] = drawn
        attention.q_proj.bias[start + fast] = (ITSELF * attention.head_dim**0.5) ** 0.5
        attention.k_proj.bias[start + fast] = -attention.q_proj.bias[start + fast]
