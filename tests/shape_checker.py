"""The run-time type checker that conftest.py puts on modalloy."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# jaxtyping decorates each method by itself, where beartype can't know what Self is.
check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any})))
