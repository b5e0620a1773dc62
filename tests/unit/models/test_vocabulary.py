"""The fingerprint follows the vocabulary through saving, and notices any change of meaning."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from chuxin.models.checkpoint import load_tokenizer
from chuxin.models.start import train_tokenizer
from chuxin.models.vocabulary import ids_without_weight, vocabulary_fingerprint


def test_saving_and_truncation_change_nothing(tiny_model: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    before = vocabulary_fingerprint(tokenizer)
    tokenizer(["a long text " * 50], truncation=True, max_length=8, padding=True)
    tokenizer.save_pretrained(tmp_path)
    assert vocabulary_fingerprint(tokenizer) == vocabulary_fingerprint(load_tokenizer(str(tmp_path))) == before


def test_another_vocabulary_is_another_fingerprint(tiny_model: str) -> None:
    other = train_tokenizer(["完全不同的句子。" * 3, "还有一句别的话"], vocab_size=300, max_len=64)
    assert vocabulary_fingerprint(other) != vocabulary_fingerprint(load_tokenizer(tiny_model))


def test_ids_without_a_sparse_weight(tiny_model: str) -> None:
    assert ids_without_weight(load_tokenizer(tiny_model)) == (0, 1, 2, 3)
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 7, "[CLS]": 2, "[SEP]": 5, "tea": 9}, "[UNK]"))
    bert = PreTrainedTokenizerFast(tokenizer_object=words, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
                                   unk_token="[UNK]")  # fmt: skip
    assert ids_without_weight(bert) == (0, 2, 5, 7)
