"""What makes two tokenizers the same to a trained model: a fingerprint of the vocabulary and of what is special.

A plan of token ids fits a model only if both were made with one vocabulary; the files cannot be compared byte for
byte, since saving a tokenizer again may change their order and settings.
"""

from __future__ import annotations

import xxhash
from transformers import PreTrainedTokenizerFast

from chuxin.errors import InputError

# Exercises normalisation and segmentation: width, case, script, digits, punctuation, a rare character.
_PROBE = "初心 Ｅmbedding１２３，檢索模型：𠮷野家的 RetroMAE？"
NEEDED = ("cls", "sep", "pad")
# FlagEmbedding 1.4.2 names cls, eos, pad and unk; a BERT tokenizer has no eos, and its [SEP] would match every text.
WITHOUT_WEIGHT = ("cls", "eos", "sep", "pad", "unk")


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns a hash of token → id, of the special ids and of the ids of a probe text."""
    special = [getattr(tokenizer, f"{name}_token_id") for name in (*NEEDED, "mask")]
    probe = tokenizer(_PROBE, add_special_tokens=True)["input_ids"]
    return xxhash.xxh3_64_hexdigest(repr((sorted(tokenizer.get_vocab().items()), special, probe)).encode())


def ids_without_weight(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Returns the token ids that never carry a sparse weight, ascending; XLM-R's are FlagEmbedding's four."""
    ids = {getattr(tokenizer, f"{name}_token_id") for name in WITHOUT_WEIGHT}
    return tuple(sorted(ids - {None}))


def require_special_tokens(tokenizer: PreTrainedTokenizerFast, path: str, names: tuple[str, ...] = NEEDED) -> None:
    """Checks that the tokenizer has the special tokens that packing and training need.

    Raises:
        InputError: One of them has no id.
    """
    for name in names:
        if getattr(tokenizer, f"{name}_token_id") is None:
            remedy = "Use the tokenizer of an XLM-R or BERT model"
            raise InputError(path, f"the tokenizer has no {name} token", remedy)
