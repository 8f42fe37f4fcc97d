"""What a JSON value is, in a reader's words."""

from typing import Any


def json_kind(value: Any) -> str:
    """What a value is called in messages to people who don't know Python.

    >>> [json_kind(value) for value in ({}, [1], "A cat.", 1.5, True, None)]
    ['an object', 'a list', 'a text', 'a number', 'true or false', 'null']
    """
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (dict, "an object"),
        ((list, tuple), "a list"),
        (str, "a text"),
        (bool, "true or false"),
        ((int, float), "a number"),
        (bytes, "bytes"),
    )
    return next(
        (kind for types, kind in kinds if isinstance(value, types)), "null" if value is None else "something else"
    )
