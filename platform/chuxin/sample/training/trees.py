"""Lessons as trees of tokens: calls about one document share its tokens, each sees the document and itself alone.

The document is computed once for all calls, as an engine's prefix cache does; a call without a document hangs on the
first token. Equals computing every call by itself (a test holds it). Only answers are learned.

Shapes: N trees, L tokens of the longest.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from chuxin.sample.training.calls import Call, Document, template
from chuxin.sample.training.tokenizer import ASSISTANT, END, USER

VERDICT_WEIGHT = 6.0  # a verdict has one token that matters, an answer of queries about 40
IGNORED = -100  # what transformers' and torch's cross entropy leave out


class Branch(NamedTuple):
    """One call behind the first `start` tokens of its tree; its answer begins at `answer` of `ids`."""

    start: int
    ids: list[int]
    answer: int
    call: Call


class Tree(NamedTuple):
    """A document, its tokens and the calls about it."""

    page: Document
    trunk: list[int]
    branches: list[Branch]

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.trunk) + sum(len(branch.ids) for branch in self.branches)


class Place(NamedTuple):
    """Where a branch stands in a batch: its tree's row, and the place of its first token there."""

    row: int
    at: int
    tree: Tree
    branch: Branch


class Batch(NamedTuple):
    """N trees, padded to L tokens."""

    ids_NL: torch.Tensor
    position_NL: torch.Tensor
    target_NL: torch.Tensor
    """The token that follows where it is part of an answer, else IGNORED."""
    weight_NL: torch.Tensor
    """What its loss counts: 1, in a verdict VERDICT_WEIGHT."""
    mask_N1LL: torch.Tensor
    """True where a token (third axis) sees another (last)."""
    places: list[Place]
    """Every branch."""


def head(text: str) -> str:
    """What stands before the part of a prompt that differs between the calls of one document: head and document."""
    before, _, _ = template("gate").partition("{passage}")
    return before + text


def tree(tokenizer: PreTrainedTokenizerFast, page: Document, calls: Sequence[Call]) -> Tree:
    """Joins calls to a tree; those whose prompt does not show the page hang on its first token."""
    shared = head(page.text)
    parts = [USER + shared]
    for call in calls:
        inside = call.prompt.startswith(shared)
        parts += [call.prompt[len(shared) :] if inside else call.prompt, call.answer]
    ids = tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"]
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    branches = []
    for call, prompt, answer in zip(calls, ids[1::2], ids[2::2], strict=True):
        start = len(ids[0]) if call.prompt.startswith(shared) else 1
        branches.append(Branch(start, [*prompt, assistant, *answer, end], len(prompt) + 1, call))
    return Tree(page, ids[0], branches)


def batch(trees: Sequence[Tree], pad: int) -> Batch:
    """Lays trees out as rows."""
    longest = max(one.size for one in trees)
    ids_NL = torch.full((len(trees), longest), pad)
    position_NL = torch.zeros_like(ids_NL)
    target_NL = torch.full_like(ids_NL, IGNORED)
    weight_NL = torch.ones(ids_NL.shape)
    # A padding token sees itself, so that no row of attention is empty.
    mask_NLL = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)
    places = []
    for row, one in enumerate(trees):
        at = len(one.trunk)
        ids_NL[row, :at] = torch.tensor(one.trunk)
        position_NL[row, :at] = torch.arange(at)
        mask_NLL[row, :at, :at] = torch.ones(at, at, dtype=torch.bool).tril()
        for branch in one.branches:
            size = len(branch.ids)
            places.append(Place(row, at, one, branch))
            ids_NL[row, at : at + size] = torch.tensor(branch.ids)
            position_NL[row, at : at + size] = torch.arange(branch.start, branch.start + size)
            target_NL[row, at + branch.answer - 1 : at + size - 1] = torch.tensor(branch.ids[branch.answer :])
            if size - branch.answer == 2:  # a verdict and the end
                weight_NL[row, at + branch.answer - 1] = VERDICT_WEIGHT
            mask_NLL[row, at : at + size, : branch.start] = True
            mask_NLL[row, at : at + size, at : at + size] = torch.ones(size, size, dtype=torch.bool).tril()
            at += size
    return Batch(ids_NL, position_NL, target_NL, weight_NL, mask_NLL[:, None], places)


def batches(trees: Sequence[Tree], tokens: int, pad: int) -> Iterator[Batch]:
    """Groups trees of similar size into batches of at most so many tokens, padding included."""
    waiting: list[Tree] = []
    for one in sorted(trees, key=lambda t: t.size):
        if waiting and one.size * (len(waiting) + 1) > tokens:
            yield batch(waiting, pad)
            waiting = []
        waiting.append(one)
    yield batch(waiting, pad)
