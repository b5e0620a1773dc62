"""Encoding on one CPU thread: chuxin's Encoder against FlagEmbedding's BGEM3FlagModel, dense vectors in fp32.

A small XLM-R with random weights and texts of very unequal length, as passages are. Equal means: every pair of
vectors has a cosine of at least 0.9999.
"""

import functools
import tempfile

import numpy as np

SETTINGS = {
    "texts": 512, "characters": [8, 400], "max_length": 256, "batch_tokens": 8192, "batch_size": 32,
    "vocabulary": 2000, "layers": 4, "hidden": 256, "heads": 4, "dtype": "float32", "threads": 1, "seed": 3,
}  # fmt: skip


@functools.cache
def texts() -> list[str]:
    """Random Han text, its lengths uniform on a logarithmic scale between the two bounds."""
    rng = np.random.default_rng(SETTINGS["seed"])
    low, high = SETTINGS["characters"]
    lengths = np.exp(rng.uniform(np.log(low), np.log(high), SETTINGS["texts"])).astype(int)
    return ["".join(map(chr, rng.integers(0x4E00, 0x4E00 + 1500, n))) for n in lengths]


@functools.cache
def directory() -> str:
    """Writes the model once."""
    import torch

    from chuxin.models.checkpoint import save_model
    from chuxin.models.config import InitConfig
    from chuxin.models.start import new_model, train_tokenizer

    torch.set_num_threads(SETTINGS["threads"])
    size = SETTINGS["max_length"]
    tokenizer = train_tokenizer(texts(), vocab_size=SETTINGS["vocabulary"], max_len=size)
    config = InitConfig(seed=SETTINGS["seed"], passages="none", max_texts=1, vocab_size=SETTINGS["vocabulary"],
                        layers=SETTINGS["layers"], hidden=SETTINGS["hidden"], heads=SETTINGS["heads"],
                        intermediate=4 * SETTINGS["hidden"], max_len=size)
    path = folder().name
    save_model(new_model(config, len(tokenizer)), tokenizer, path)
    return path


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    """A folder that goes when this process ends."""
    return tempfile.TemporaryDirectory(prefix="bench-encode-")


@functools.cache
def encoder():
    from chuxin.encoding.engine import Encoder

    return Encoder(directory(), SETTINGS["max_length"], SETTINGS["batch_tokens"])


@functools.cache
def flag_model():
    from FlagEmbedding import BGEM3FlagModel

    return BGEM3FlagModel(directory(), use_fp16=False, devices=["cpu"])


def ours() -> np.ndarray:
    return encoder().encode(texts())


def theirs() -> np.ndarray:
    return flag_model().encode(texts(), batch_size=SETTINGS["batch_size"], max_length=SETTINGS["max_length"],
                               return_dense=True, return_sparse=False, return_colbert_vecs=False)["dense_vecs"]


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return a.shape == b.shape and bool(cosines.min() >= 0.9999)
