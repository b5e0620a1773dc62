"""The forms a domain of the made world is written in: kinds of entities, topics, facts, times.

Every fact can be told in the words of a passage (`says`) and asked for in other words (`asks`); the same
holds for the kind of an entity and for what tells its passages apart (`When`). A model that learns these
word pairs on some entities can read queries about entities it never saw; character matching cannot.
"""

from typing import NamedTuple


class Word(NamedTuple):
    """One component in a passage's words and in a query's."""

    said: str
    asked: tuple[str, ...]


class Kind(NamedTuple):
    """A kind of entity: the last component of a name, its colloquial word, its abbreviation."""

    said: str
    asked: str
    short: str


class Attribute(NamedTuple):
    """A fact. Strings hold their variants separated by `|`; `{}` stands for the value.

    `values` is a pool: variants in which `#low-high/step#` is a number, or PERSON.
    """

    noun: str
    values: str
    says: str
    asks: str


class Topic(NamedTuple):
    """Facts that are told together in one passage."""

    name: str
    attributes: tuple[Attribute, ...]


class Domain(NamedTuple):
    """A field of the made world. `pattern` joins the components {r}egion, {b}rand and {t}ype to a name."""

    key: str
    title: str
    pattern: str
    pronoun: str
    kinds: tuple[Kind, ...]
    whens: tuple[Word, ...]
    topics: tuple[Topic, ...]
    fillers: tuple[str, ...]


PERSON = "@"


def kinds(text: str) -> tuple[Kind, ...]:
    """Reads `said/asked/short` triples separated by blanks."""
    return tuple(Kind(*entry.split("/")) for entry in text.split())


def words(text: str) -> tuple[Word, ...]:
    """Reads `said/asked/asked…` entries separated by blanks."""
    parts = [entry.split("/") for entry in text.split()]
    return tuple(Word(part[0], tuple(part[1:])) for part in parts)
