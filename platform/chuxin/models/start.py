"""A new model: a Unigram tokenizer in XLM-R's id layout and drawn weights of XLM-R's architecture.

Ids: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the 256 bytes, pieces by falling frequency, `<mask>` last. A
character outside the vocabulary becomes its UTF-8 bytes, so rare Han characters keep their identity and no
text gives `<unk>`. Blanks become `▁` where they stand; none is put in front, since Chinese words do not begin
with one. Leaves out: adapting an existing vocabulary, more positions (positions.py).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from chuxin.errors import InputError
from chuxin.models.config import InitConfig
from chuxin.models.encoder import M3Model, new_heads

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
FIRST_PIECE = len(SPECIAL) + 256
# SentencePiece skips longer lines. In code points; four bytes each at most.
LINE_CHARS = 2000


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_len: int) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; equal texts in equal order give an equal tokenizer.

    SentencePiece does the training and the tokenizers library runs the result: the latter's own Unigram
    trainer gave two vocabularies in two runs on the same 3,200 texts (its counts stand in hash order), at 2.6
    times the CPU time.

    Args:
        texts: What the vocabulary is fitted to; read once, as a stream.
        vocab_size: Entries wanted, special and byte tokens included. Fewer come where the texts hold no more.
        max_len: Stored as the tokenizer's `model_max_length`.

    Raises:
        InputError: There is no text, or the vocabulary cannot hold the texts' characters.
    """
    import sentencepiece

    normalizer = _normalizer()
    lines = _lines(texts, normalizer)
    first = next(lines, None)
    if first is None:
        raise InputError(
            "init.passages", "there is no text to train a tokenizer on", "Check the curate stage"
        )
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], lines), model_writer=written, model_type="unigram",
            vocab_size=vocab_size - 1,  # <mask> is added below
            bos_id=0, pad_id=1, eos_id=2, unk_id=3, byte_fallback=True, hard_vocab_limit=False,
            # 0.9995: SentencePiece's advice for Chinese; the rest becomes bytes. A Chinese piece of more than
            # 8 characters is a whole phrase.
            character_coverage=0.9995, max_sentencepiece_length=8,
            # Blanks are so rare in Chinese text that the coverage would leave them to three bytes each.
            required_chars="\u2581",
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
            max_sentence_length=4 * LINE_CHARS, shuffle_input_sentence=False, num_threads=1, minloglevel=3,
        )  # fmt: skip
    except RuntimeError as error:
        if "Vocabulary size is smaller" not in str(error):
            raise
        problem = f"{vocab_size} entries cannot hold the 256 bytes and every character of these passages"
        raise InputError("init.vocab_size", problem, "Raise it") from error
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    return _wrap([*vocab, ("<mask>", 0.0)], normalizer, max_len)


def new_model(config: InitConfig, vocab_size: int) -> M3Model:
    """Draws a model from `config.seed`: N(0, 0.02) as XLM-R, heads from their own fixed seed.

    Args:
        config: The shape; its `max_len` becomes `max_len + 2` positions, since RoBERTa counts from 2.
        vocab_size: Rows of the embedding table.
    """
    shape = XLMRobertaConfig(
        vocab_size=vocab_size, hidden_size=config.hidden, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, intermediate_size=config.intermediate,
        max_position_embeddings=config.max_len + 2, hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = XLMRobertaModel(shape, add_pooling_layer=False)
    heads = new_heads(config.hidden, config.hidden, shape.initializer_range)
    return M3Model(backbone, *heads, heads_trained=False).eval()


def coverage(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> dict[str, float]:
    """Measures a tokenizer made here: characters a token, and the shares of `<unk>` and of byte tokens."""
    characters = tokens = unknown = in_bytes = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        characters += len(text)
        tokens += len(ids)
        unknown += sum(i == tokenizer.unk_token_id for i in ids)
        in_bytes += sum(len(SPECIAL) <= i < FIRST_PIECE for i in ids)
    total = max(tokens, 1)
    return {
        "chars_per_token": characters / total,
        "unk_share": unknown / total,
        "byte_share": in_bytes / total,
    }


def _normalizer() -> normalizers.Normalizer:
    # Nmt drops control characters; NFKC makes full-width forms plain, as XLM-R's own character map does.
    return normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )


def _lines(texts: Iterable[str], normalizer: normalizers.Normalizer) -> Iterator[str]:
    for text in texts:
        clean = normalizer.normalize_str(text)
        for start in range(0, len(clean), LINE_CHARS):
            yield clean[start : start + LINE_CHARS]


def _wrap(
    vocab: list[tuple[str, float]], normalizer: normalizers.Normalizer, max_len: int
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never"), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    # As XLM-R has it: a blank before <mask> belongs to it.
    mask = AddedToken("<mask>", special=True, normalized=False, lstrip=True)
    tokenizer.add_special_tokens([mask])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_len, bos_token="<s>", eos_token="</s>",
        cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token=mask,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
