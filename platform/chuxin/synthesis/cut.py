"""Cutting passages to what an LLM is shown, by its own tokens and before anything else is done with them.

What is cut off is gone for the whole line: the text that an LLM saw is the text that becomes the positive.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from chuxin.models.location import read_file


class Cutter:
    """Cuts texts to so many tokens; travels to workers, tokenizer and all, so that no node need have the LLM.

    Args:
        model: The LLM's directory, URI or hub name; its tokenizer.json alone is read.
        max_tokens: Most tokens that are left of a text.

    Raises:
        InputError: It cannot be had.
    """

    def __init__(self, model: str, max_tokens: int) -> None:
        self._tokenizer, self._max_tokens = Tokenizer.from_buffer(read_file(model, "tokenizer.json")), max_tokens

    def cut(self, text: str) -> str:
        """Returns the text, or its beginning: whole characters, without blanks at the end."""
        if len(text.encode()) <= self._max_tokens:  # a token is a byte at least
            return text
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        # A character may be several tokens: the first one left out says where it begins.
        return text if len(offsets) <= self._max_tokens else text[: offsets[self._max_tokens][0]].rstrip()
