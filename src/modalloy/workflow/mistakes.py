"""What is wrong with a configuration's plain values, in a user's words, before they are built into dataclasses."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}


def mistakes(kind: Any, values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each value that doesn't fit its field, and each key that no field has: the dotted key, and what is wrong.

    Args:
        kind: a dataclass, or the type of one of its fields.
        values: what a YAML file gives for it.
        key: where the values stand.

    >>> from modalloy.data.rand_augment import RandAugment
    >>> list(mistakes(RandAugment, 3, "augmentation"))
    [('augmentation', 'augmentation must hold keys and values, got 3.')]
    """
    if is_dataclass(kind):
        yield from _of_dataclass(kind, values, key)
    elif isinstance(values, dict) and get_origin(kind) in (Union, UnionType) and any(map(is_dataclass, get_args(kind))):
        yield from _of_dataclass(next(filter(is_dataclass, get_args(kind))), values, key)
    elif get_origin(kind) is tuple and isinstance(values, list | tuple):
        for position, value in enumerate(values):
            yield from mistakes(get_args(kind)[0], value, f"{key}.{position}")
    elif not _fits(kind, values):
        yield key, f"{key} must be {words_for(kind)}, got {values!r}."


def words_for(kind: Any) -> str:
    """What a value of this type is called.

    >>> words_for(int | None), words_for(Literal["best", "all"])
    ('a whole number or null', 'one of best, all')
    """
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(words_for, get_args(kind)))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        return f"a list, each {words_for(get_args(kind)[0])}"
    return "keys and values" if is_dataclass(kind) else _KINDS.get(kind, str(kind))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the name that was meant, to go on a message with, or nothing where none is alike.

    >>> did_you_mean("serach", ["search", "serve"]), did_you_mean("xyz", ["search", "serve"])
    ('; did you mean search?', '')
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _of_dataclass(kind: Any, values: Any, key: str) -> Iterator[tuple[str, str]]:
    if not isinstance(values, dict):
        yield key, f"{key} must hold keys and values, got {values!r}."
        return
    types, prefix = get_type_hints(kind), f"{key}." if key else ""
    known = [field.name for field in fields(kind)]
    for name, value in values.items():
        if name in known:
            yield from mistakes(types[name], value, f"{prefix}{name}")
        else:
            hint = did_you_mean(str(name), known)
            yield f"{prefix}{name}", f"unknown key {prefix}{name}{hint} (known: {', '.join(known)})"
    for field in fields(kind):
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            yield f"{prefix}{field.name}", f"the key {prefix}{field.name} is missing."


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(each, value) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_fits(get_args(kind)[0], each) for each in value)
    if kind in (int, float) and isinstance(value, str):
        # YAML takes 1e-3 to be a text.
        return _is_number(kind, value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _is_number(kind: type[int] | type[float], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
