"""Reads a release as its users will and compares dense vectors with the training checkpoint's, in fp32.

Leaves out: the sparse and the multi-vector output, speed, scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chuxin.encoding.agreement import PROBES, require_agreement
from chuxin.encoding.engine import Encoder
from chuxin.models.checkpoint import quiet_transformers


def verify(checkpoint: str, release: str, max_len: int) -> dict[str, float]:
    """Returns the smallest dense cosine of each reader with the training checkpoint, by reader.

    Args:
        checkpoint: The training checkpoint's directory.
        release: The release's directory.
        max_len: See ReleaseConfig.

    Raises:
        InputError: A reader's vector has a cosine under 0.9999; names the reader and the text.
    """
    # Four times the longest text: the probes then make several padded batches.
    expected_NH = Encoder(checkpoint, max_len, batch_tokens=4 * max_len).encode(PROBES)
    readers = {"flagembedding": flagembedding_vectors, "sentence_transformers": sentence_transformers_vectors}
    found = {name: read(release, PROBES, max_len) for name, read in readers.items()}
    return {name: require_agreement(expected_NH, found[name], f"{release} in {name}") for name in readers}


def flagembedding_vectors(directory: str, texts: Sequence[str], max_len: int) -> np.ndarray:
    """Returns BGEM3FlagModel's dense vectors."""
    from FlagEmbedding import BGEM3FlagModel

    with quiet_transformers():
        model = BGEM3FlagModel(directory, use_fp16=False, devices="cpu")
        return model.encode(list(texts), max_length=max_len)["dense_vecs"]


def sentence_transformers_vectors(directory: str, texts: Sequence[str], max_len: int) -> np.ndarray:
    """Returns SentenceTransformer's vectors; the directory itself must tell it `max_len`."""
    from sentence_transformers import SentenceTransformer

    with quiet_transformers():
        model = SentenceTransformer(directory, device="cpu")
        if model.max_seq_length != max_len:
            raise RuntimeError(f"sentence-transformers reads a maximal length of {model.max_seq_length}")
        return model.encode(list(texts), show_progress_bar=False)
