"""Heads that read, from the sample LLM's states, what the made world knows of a document and a query about it.

From a yes or no alone a model of this size learns next to nothing of what makes it so: 77,000 verdicts `answered`
left it at chance. So each query token of the second layer tells whether it, alone and behind the token before it,
stands in the document; the third layer's query tokens, summed, which parts of what is asked match, the token in front
of the verdict what is asked, the document's last one what is told; the last layer's token in front of the verdict the
matches again. The heads are thrown away after the training.

Shapes: V verdicts of a batch, Q query tokens of them, H width of a state.
"""

import torch
from torch import nn
from torch.nn import functional

from chuxin.sample.training.facts import CLASSES, COPIES, MATCHES, PARTS, TOLD, UNKNOWN, Example, copies, example
from chuxin.sample.training.trees import Batch, Place

COPIED, READ = 2, 4  # the layers whose output is read


class Heads(nn.Module):
    """The heads; each reads states of width H."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.asked = nn.ModuleList(nn.Linear(width, count) for count in CLASSES[: -len(PARTS)])
        self.subject = nn.ModuleList(nn.Linear(width, count) for count in PARTS)
        self.told = nn.Linear(width, TOLD)
        self.evidence = nn.Linear(width, MATCHES)
        self.matches = nn.Linear(width, MATCHES)
        self.copies = nn.Linear(width, COPIES)


def shown(batch: Batch) -> list[tuple[Place, Example]]:
    """The branches that show a query beside a document, with what the world knows of both."""
    return [(p, example(p.branch.call.query, p.tree.page)) for p in batch.places if p.branch.call.query is not None]


def query_ids(place: Place) -> list[int]:
    """The tokens of the query that a branch shows: those between its prompt's two fixed tokens."""
    return place.branch.ids[1 : place.branch.answer - 2]


@torch.autocast("cpu", enabled=False)
def terms(heads: Heads, states: tuple[torch.Tensor, ...], batch: Batch) -> list[torch.Tensor]:
    """Returns the heads' losses, each weighted to about 1 for a model that knows nothing; none without such calls.

    Args:
        heads: The heads.
        states: Of the embeddings and of every layer, [N, L, H] each.
        batch: What they were computed of.
    """
    pairs = shown(batch)
    if not pairs:
        return []
    row_V, verdict_V, end_V, row_Q, at_Q, owner_Q, copied = [], [], [], [], [], [], []
    for number, (place, _) in enumerate(pairs):
        query = query_ids(place)
        row_V.append(place.row)
        verdict_V.append(place.at + place.branch.answer - 1)
        end_V.append(len(place.tree.trunk) - 1)
        row_Q += [place.row] * len(query)
        at_Q += range(place.at + 1, place.at + 1 + len(query))
        owner_Q += [number] * len(query)
        copied += copies(query, place.tree.trunk)
    examples = [one for _, one in pairs]
    class_VC = torch.tensor([one.classes for one in examples])
    match_VM = torch.tensor([one.matches for one in examples], dtype=torch.float32)
    told_VF = torch.zeros(len(examples), TOLD)
    for row, one in enumerate(examples):
        told_VF[row, list(one.told)] = 1.0
    copied_QH = states[COPIED][row_Q, at_Q].float()
    read_QH = states[READ][row_Q, at_Q].float()
    asked_VH = states[READ][row_V, verdict_V].float()
    told_VH = states[READ][row_V, end_V].float()
    last_VH = states[-1][row_V, verdict_V].float()
    crossed = functional.binary_cross_entropy_with_logits
    known = match_VM != UNKNOWN
    evidence_VM = torch.zeros_like(match_VM).index_add_(0, torch.tensor(owner_Q), heads.evidence(read_QH))
    asked = len(heads.asked)
    found = [_named(head(asked_VH), class_VC[:, c]) for c, head in enumerate(heads.asked)]
    found += [_named(head(told_VH), class_VC[:, asked + c]) for c, head in enumerate(heads.subject)]
    return [
        *found, 30 * crossed(heads.told(told_VH), told_VF), 3 * crossed(evidence_VM[known], match_VM[known]),
        3 * crossed(heads.matches(last_VH)[known], match_VM[known]),
        3 * crossed(heads.copies(copied_QH), torch.tensor(copied)),
    ]  # fmt: skip


def _named(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the known classes as a share of what guessing costs; 0 where none is known."""
    known = classes != UNKNOWN
    return functional.cross_entropy(logits, classes, reduction="sum") / known.sum().clamp(min=1)
