"""The sample models' tokenizers: byte-level BPE as Qwen2 has it, its pieces learned from the made world.

A character of the world is one entry, frequent words of up to four characters another; anything else is spelled in
bytes, so no text is lost. The fixed parts of the prompts are entries too: a prompt costs 10 tokens instead of 150, and
two CPU cores can train what follows it. The glue of the answers' JSON is built of ordinary merges.

Merges are trained on characters and then written in bytes, so that no piece ends inside a character.
"""

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END, SYSTEM, USER, ASSISTANT = SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
GLUE = ('{"queries": ["', '", "', '"]}', '{"query": "', '"}', '{"category": "', '", "role": "', '", "scene": "')
PATTERN = r'\{"[a-z]+": \[?"|", "(?:[a-z]+": ")?|"\]?\}|\p{Han}+|\p{N}|\s|[^\p{Han}\p{N}\s]'
LONGEST_PIECE = 4  # characters
ALWAYS = "是否0123456789，。；：？！、·“”《》（）…【】{}[]\":,._- \n"


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    spare = (byte for byte in range(256) if byte not in letters)
    letters |= {byte: chr(256 + number) for number, byte in enumerate(spare)}
    return [letters[byte] for byte in range(256)]


def train(texts: Iterable[str], pieces: int, prompts: Iterable[str], max_len: int) -> PreTrainedTokenizerFast:
    """Trains the tokenizer.

    Args:
        texts: What the pieces are fitted to.
        pieces: How many characters and pieces of several there are; bytes and what builds characters of them, prompts
            and special tokens come on top.
        prompts: Texts that become one token each wherever they stand.
        max_len: Stored as `model_max_length`.
    """
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, max_token_length=LONGEST_PIECE, initial_alphabet=sorted(set(ALWAYS)), show_progress=False,
        min_frequency=20,
    )  # fmt: skip
    words.train_from_iterator(texts, trainer)
    learned = json.loads(words.to_str())["model"]
    letters = byte_letters()
    entries = dict.fromkeys(letters)
    merges: dict[tuple[str, str], None] = {}
    for text in sorted(piece for piece in learned["vocab"] if len(piece) == 1):
        _build([letters[byte] for byte in text.encode()], entries, merges)
    for text in GLUE:
        _build(list(_spell(text, letters)), entries, merges)
    for left, right in learned["merges"]:
        pair = _spell(left, letters), _spell(right, letters)
        if not any(c in '{}"' for c in left + right):
            merges[pair] = entries["".join(pair)] = None
    vocab = {entry: number for number, entry in enumerate(entries)}
    made = Tokenizer(models.BPE(vocab, list(merges)))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    made.add_tokens([AddedToken(text, normalized=False) for text in sorted(set(prompts))])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=max_len, eos_token=END, pad_token=PAD, chat_template=CHAT,
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _spell(text: str, letters: list[str]) -> str:
    return "".join(letters[byte] for byte in text.encode())


def _build(parts: list[str], entries: dict[str, None], merges: dict[tuple[str, str], None]) -> None:
    """Adds the merges that build an entry from left to right."""
    left = parts[0]
    for part in parts[1:]:
        merges[left, part] = entries[left + part] = None
        left += part
