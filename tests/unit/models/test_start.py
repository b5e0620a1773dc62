import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_tokenizer, save_model
from chuxin.models.config import InitConfig
from chuxin.models.start import coverage, new_model, train_tokenizer

TEXTS = ["小麦在秋天播种,第二年夏天收割。", "Wheat is sown in autumn 秋天.", "水稻喜欢温暖的气候。"] * 20
SHAPE = InitConfig(seed=5, passages="p", max_texts=9, vocab_size=400, layers=1, hidden=16, heads=2,
                   intermediate=32, max_len=30)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    made = train_tokenizer(TEXTS, 400, 30)
    directory = str(tmp_path_factory.mktemp("start"))
    save_model(new_model(SHAPE, len(made)), made, directory)
    return load_tokenizer(directory)


def test_ids_stand_as_in_xlm_r(tokenizer: object) -> None:
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    single, pair = tokenizer("小麦")["input_ids"], tokenizer("小麦", "水稻")["input_ids"]
    assert single[0] == 0 and single[-1] == 2
    assert pair[: len(single)] == single and pair[len(single)] == 2 and pair[-1] == 2
    assert set(tokenizer("小麦")) == {"input_ids", "attention_mask"}
    assert tokenizer.model_max_length == 30


def test_no_blank_is_put_in_front(tokenizer: object) -> None:
    assert not tokenizer.tokenize("小麦")[0].startswith("▁")
    assert tokenizer("小麦")["input_ids"] == tokenizer("  小麦\n")["input_ids"]
    assert tokenizer("ＡＢ１２")["input_ids"] == tokenizer("AB12")["input_ids"]


def test_rare_characters_stay_apart(tokenizer: object) -> None:
    assert tokenizer("𠮷")["input_ids"] != tokenizer("㐂")["input_ids"]
    assert coverage(tokenizer, ["𠮷㐂"]) == {"chars_per_token": 2 / 7, "unk_share": 0, "byte_share": 1}
    assert coverage(tokenizer, TEXTS[:3])["byte_share"] == 0


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_text_has_ids_and_none_is_unknown(tokenizer: object, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert 3 not in ids or "<unk>" in text
    assert all(0 <= i < len(tokenizer) for i in ids)
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert tokenizer.backend_tokenizer.normalizer.normalize_str(normal) == normal
    assert tokenizer(normal, add_special_tokens=False, verbose=False)["input_ids"] == ids
    assert (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace("▁", " ").strip()
        == normal.replace("▁", " ").strip()
    )


def test_equal_texts_give_an_equal_tokenizer() -> None:
    first, second = train_tokenizer(iter(TEXTS), 400, 30), train_tokenizer(list(TEXTS), 400, 30)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_what_cannot_be_trained() -> None:
    with pytest.raises(InputError, match="no text"):
        train_tokenizer([" ", ""], 400, 30)
    with pytest.raises(InputError, match="270 entries cannot hold"):
        train_tokenizer(TEXTS, 270, 30)


def test_weights_follow_the_seed_and_nothing_else() -> None:
    state = torch.random.get_rng_state()
    first = new_model(SHAPE, 400)
    torch.manual_seed(99)
    second = new_model(SHAPE, 400)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.random.set_rng_state(state)
    config = first.backbone.config
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (400, 32, 1)
    assert first.max_length == 30
    assert not first.heads_trained
