"""Texts not worth a query: contents, menus, broken encodings, fillers, ends without a subject, other languages.

They teach the gate. Like the faults of sample/defects.py, but of a passage's size and without their page.
"""

import random
from collections.abc import Callable, Sequence

from chuxin.sample import pools
from chuxin.sample.defects import CHAPTERS, FOREIGN, NUMERALS, SHORT_LINES
from chuxin.sample.world import Passage


def spoilt(rng: random.Random, told: Sequence[Passage]) -> str:
    """Draws one text that is not worth a query; some are made from passages of one entity."""
    return rng.choice(FAULTS)(rng, rng.choice(told))


def contents(rng: random.Random, passage: Passage) -> str:
    """A table of contents."""
    at, lines = 1, [f"{passage.entity.name}目录"][: rng.randint(0, 1)]
    for chapter in range(rng.randint(3, 7)):
        lines.append(f"第{NUMERALS[chapter]}章 {rng.choice(CHAPTERS)}{'…' * rng.randint(4, 9)}{at}")
        at += rng.randint(2, 19)
    return "\n".join(lines)


def menu(rng: random.Random, _: Passage) -> str:
    """Menu entries."""
    lines = rng.sample(SHORT_LINES, rng.randint(4, 8))
    return "\n".join(line.format(n=rng.randrange(900)) for line in lines)


def mojibake(rng: random.Random, passage: Passage) -> str:
    """A broken encoding: lost characters, or UTF-8 read as GBK or Latin-1."""
    text = passage.text[: rng.randint(30, 50)]
    form = rng.randrange(3)
    if form == 0:
        return "".join("\ufffd" if rng.random() < 0.4 else c for c in text)
    if form == 1:
        return "".join("\ufffd\ufffd".encode().decode("gbk") if c not in "，。\n" else c for c in text[::2])
    return text[:16].encode().decode("latin-1")


def fillers(rng: random.Random, passage: Passage) -> str:
    """Sentences that tell nothing."""
    stock = [*passage.entity.domain.fillers, *(b.format(r=passage.entity.region) for b in pools.BACKGROUND)]
    return "".join(rng.sample(stock, rng.randint(2, 5)))


def headless(rng: random.Random, passage: Passage) -> str:
    """The rest of a passage whose subject stood before the cut."""
    _, _, rest = passage.text.partition(passage.when.said)
    cut = min((at for at in (rest.find("，"), rest.find("。"), rest.find("；")) if at >= 0), default=0)
    return (passage.entity.domain.pronoun if rng.random() < 0.5 else "") + rest[cut + 1 :]


def foreign(rng: random.Random, _: Passage) -> str:
    """Another language."""
    return rng.choice(FOREIGN).format(n=rng.randrange(999))[: rng.randint(30, 60)]


FAULTS: tuple[Callable[[random.Random, Passage], str], ...] = (
    contents, menu, mojibake, fillers, fillers, headless, foreign,
)  # fmt: skip
