"""Config: a YAML file and command-line overrides become frozen dataclasses, checked, with the line named.

pydantic validates types, tyro parses overrides and writes `--help` from the texts under the fields.
Two types mark values that name an input: `Ref` and `ModelRef`; the runner turns them into paths and fingerprints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NewType, TypeVar

import yaml

from chuxin.errors import InputError
from chuxin.files import filesystem

Ref = NewType("Ref", str)
"""An input: a stage's name, "stage:path/inside/it", or a local path, glob or URI."""
ModelRef = NewType("ModelRef", str)
"""A model: a stage's name, a directory, or a hub name such as BAAI/bge-m3-retromae."""

T = TypeVar("T")


def load(cls: type[T], path: str) -> T:
    """Reads a YAML file into a dataclass; `${NAME}` in a value is taken from the environment.

    Args:
        cls: A frozen dataclass, nested as deep as wanted.
        path: The YAML file. Every key must be a field.

    Raises:
        InputError: The file is missing, is not YAML, a key or value does not fit, or a variable is not set; names
            file and line.
    """
    fs, place = filesystem(path)
    if not fs.isfile(place):
        raise InputError(path, "there is no such config file", "Give --config one of jobs/configs/*/recipe.yaml")
    try:
        text = fs.cat_file(place).decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text) or {}
    except UnicodeDecodeError as error:
        raise InputError(path, f"this is not UTF-8 (byte {error.start})", "Save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", "bad syntax")
        raise InputError(f"{path}:{line}", f"this is not YAML ({problem})", "Correct the line") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}:1", "a config is a mapping of keys to values", "Begin it with `workspace: …`")
    lines: dict[tuple, int] = {}
    for loc, line in _lines(node, ()):
        if loc in lines:
            key = ".".join(map(str, loc))
            raise InputError(f"{path}:{line}", f"the key `{key}` stands twice (first in line {lines[loc]})", "Keep one")
        lines[loc] = line

    def where(loc: tuple) -> str:
        return f"{path}:{_line_of(lines, loc)}"

    return validate(cls, _expand(raw, (), where), where)


def _expand(value: Any, loc: tuple, where: Callable[[tuple], str]) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, (*loc, k), where) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, (*loc, i), where) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    for name in re.findall(r"\$\{(\w+)\}", value):
        if name not in os.environ:
            raise InputError(where(loc), f"the environment has no variable {name}", f"Set it: {name}=… python jobs/…")
        value = value.replace(f"${{{name}}}", os.environ[name])
    return value


def validate(cls: type[T], raw: Mapping[str, Any], where: Callable[[tuple], str]) -> T:
    """Builds a dataclass from plain data; `where` names the place of a key path for the error."""
    import pydantic

    _forbid_unknown(cls)
    try:
        return pydantic.TypeAdapter(cls).validate_python(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        loc = tuple(first["loc"])
        key = ".".join(map(str, loc))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            near = difflib.get_close_matches(str(loc[-1]), _fields_at(cls, loc[:-1]), 1)
            hint = f"Did you mean `{near[0]}`" if near else f"Known keys: {', '.join(_fields_at(cls, loc[:-1]))}"
            raise InputError(where(loc), f"unknown key `{key}`", hint) from error
        said = first["msg"].removeprefix("Value error, ")
        problem = f"{f'`{key}`: ' if key else ''}{said[:1].lower()}{said[1:]}"
        raise InputError(where(loc), problem, "See the field's text in --help") from error


def override(config: T, arguments: Sequence[str], program: str) -> T:
    """Applies command-line flags such as `--optimizer.learning-rate 1e-4` to a loaded config.

    Raises:
        InputError: A flag is unknown or its value does not fit.
    """
    import tyro

    marks = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(type(config), default=config, args=list(arguments), prog=program, config=marks)
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro draws a box of several lines; an error here is one line.
        words = re.sub(r"[─│╭╮╰╯\s]+", " ", said.getvalue()).strip()
        words = re.sub(r"^(.+?) (?=\1\b)", "", words)  # the box's title, which the text begins with
        problem = words.partition(" For full helptext")[0].rstrip(".")
        raise InputError("command line", problem, f"See python {program} --help") from None
    except ValueError as error:
        raise InputError("command line", str(error), f"See python {program} --help") from error


def to_plain(value: Any) -> Any:
    """Turns a config into plain data for YAML and JSON."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value


def refs(value: Any, hint: Any = None) -> Iterator[tuple[str, bool]]:
    """Yields (reference, is a model) for every `Ref` and `ModelRef` in a config, in field order."""
    for inner, kind in walk(value, hint):
        if kind in (Ref, ModelRef) and isinstance(inner, str):
            yield inner, kind is ModelRef


def walk(value: Any, hint: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every leaf of a config with its declared type, through dataclasses, containers and unions."""
    options = [o for o in typing.get_args(hint) if o is not type(None)] if is_union(hint) else [hint]
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        for field in dataclasses.fields(value):
            yield from walk(getattr(value, field.name), hints[field.name])
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from walk(item, item_hint(hint))
    else:
        yield value, next((o for o in options if o in (Ref, ModelRef)), options[0])


def is_union(hint: Any) -> bool:
    """True for `A | B` and Optional[A]."""
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def item_hint(hint: Any) -> Any:
    """Returns the declared type of a container's items: the values of a mapping, the elements of a tuple."""
    options = [o for o in typing.get_args(hint) if o is not type(None)] if is_union(hint) else [hint]
    arguments = next((typing.get_args(o) for o in options if typing.get_args(o)), ())
    return arguments[1 if len(arguments) == 2 and arguments[1] is not Ellipsis else 0] if arguments else None


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield hint
        for inner in typing.get_type_hints(hint).values():
            yield from _dataclasses_in(inner)
    for inner in typing.get_args(hint):
        yield from _dataclasses_in(inner)


def _forbid_unknown(cls: type) -> None:
    # The classes are plain dataclasses, so that the core runs without pydantic; strictness is added here.
    for inner in _dataclasses_in(cls):
        inner.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]


def _fields_at(cls: Any, loc: tuple) -> list[str]:
    hint: Any = cls
    for key in loc:
        options = [hint, *typing.get_args(hint)]
        owner = next((o for o in options if dataclasses.is_dataclass(o)), None)
        hint = typing.get_type_hints(owner).get(key, owner) if owner else hint
    owner = next((o for o in [hint, *typing.get_args(hint)] if dataclasses.is_dataclass(o)), None)
    return [f.name for f in dataclasses.fields(owner)] if owner else []


def _lines(node: yaml.Node | None, path: tuple) -> Iterator[tuple[tuple, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _lines(value, (*path, index))


def _line_of(lines: Mapping[tuple, int], loc: tuple) -> int:
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines.get(loc, 1)
