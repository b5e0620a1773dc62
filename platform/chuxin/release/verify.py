"""Reads a release as its users will and compares its outputs with the training checkpoint's, in fp32.

Dense vectors in FlagEmbedding and sentence-transformers; lexical weights and multi-vectors in FlagEmbedding, where
the heads are trained: drawn heads are written, but nobody should read them. Leaves out: speed, scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chuxin.encoding.agreement import PROBES, require_agreement
from chuxin.encoding.engine import Encoded, Encoder
from chuxin.encoding.sparse import SparseVector
from chuxin.errors import InputError
from chuxin.models.checkpoint import quiet_transformers

TOLERANCE = 1e-4
"""Largest difference of a lexical weight, and of a component of a multi-vector; rounding makes some 1e-6."""


def verify(checkpoint: str, release: str, max_len: int) -> dict[str, float]:
    """Compares a release with its training checkpoint.

    Args:
        checkpoint: The training checkpoint's directory.
        release: The release's directory.
        max_len: See ReleaseConfig.

    Returns:
        The smallest dense cosine of each reader, and of trained heads the largest difference of a lexical weight and
        of a multi-vector's component, as facts of the release.

    Raises:
        InputError: A reader's vector has a cosine under 0.9999, or FlagEmbedding's weights or multi-vectors differ by
            more than 1e-4; names the reader and the text.
    """
    # Four times the longest text: the probes then make several batches.
    encoder = Encoder(checkpoint, max_len, batch_tokens=4 * max_len)
    expected = encoder.encode_all(PROBES)
    trained = encoder.model.heads_trained
    theirs = flagembedding_outputs(release, PROBES, max_len, heads=trained)
    where = f"{release} in flagembedding"
    facts = {"least_cosine_flagembedding": require_agreement(expected.dense_NH, theirs["dense_vecs"], where)}
    dense_NH = sentence_transformers_vectors(release, PROBES, max_len)
    where_st = f"{release} in sentence_transformers"
    facts["least_cosine_sentence_transformers"] = require_agreement(expected.dense_NH, dense_NH, where_st)
    return facts | (_head_differences(expected, theirs, where) if trained else {})


def flagembedding_outputs(directory: str, texts: Sequence[str], max_len: int, heads: bool) -> dict[str, Any]:
    """Returns what BGEM3FlagModel gives: dense_vecs, and with `heads` lexical_weights and colbert_vecs too."""
    from FlagEmbedding import BGEM3FlagModel

    with quiet_transformers():
        model = BGEM3FlagModel(directory, use_fp16=False, devices="cpu")
        return model.encode(list(texts), max_length=max_len, return_sparse=heads, return_colbert_vecs=heads)


def flagembedding_vectors(directory: str, texts: Sequence[str], max_len: int) -> np.ndarray:
    """Returns BGEM3FlagModel's dense vectors."""
    return flagembedding_outputs(directory, texts, max_len, heads=False)["dense_vecs"]


def sentence_transformers_vectors(directory: str, texts: Sequence[str], max_len: int) -> np.ndarray:
    """Returns SentenceTransformer's vectors; the directory itself must tell it `max_len`."""
    from sentence_transformers import SentenceTransformer

    with quiet_transformers():
        model = SentenceTransformer(directory, device="cpu")
        if model.max_seq_length != max_len:
            raise RuntimeError(f"sentence-transformers reads a maximal length of {model.max_seq_length}")
        return model.encode(list(texts), show_progress_bar=False)


def _head_differences(expected: Encoded, theirs: Mapping[str, Any], where: str) -> dict[str, float]:
    lexical = [_lexical(*pair) for pair in zip(expected.sparse, theirs["lexical_weights"], strict=True)]
    colbert = [_colbert(*pair) for pair in zip(expected.multi_vector, theirs["colbert_vecs"], strict=True)]
    return {
        "greatest_difference_lexical": _require("a lexical weight", lexical, where),
        "greatest_difference_colbert": _require("a multi-vector", colbert, where),
    }


def _lexical(own: SparseVector, theirs: Mapping[str, float]) -> float:
    weights = dict(zip(own.ids_K.tolist(), own.weight_K.tolist(), strict=True))
    found = {int(token): float(weight) for token, weight in theirs.items()}
    # A weight of 1e-9 may be 0 in the other: a token that only one of them names weighs 0 in the other.
    return max((abs(weights.get(token, 0.0) - found.get(token, 0.0)) for token in weights | found), default=0.0)


def _colbert(own_LD: np.ndarray, theirs_LD: np.ndarray) -> float:
    return float(np.abs(own_LD - theirs_LD).max()) if own_LD.shape == theirs_LD.shape else float("inf")


def _require(what: str, differences: Sequence[float], where: str) -> float:
    worst = int(np.argmax(differences))
    if not differences[worst] <= TOLERANCE:
        problem = f"{what} differs by {differences[worst]:.2g} from the training checkpoint's on {PROBES[worst][:20]!r}"
        raise InputError(where, problem, "Compare its head and tokenizer files with those of the training checkpoint")
    return differences[worst]
