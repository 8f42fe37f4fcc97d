"""Libraries that only some encoders need, loaded when one of those is asked for."""

from importlib import import_module
from types import ModuleType

from modalloy.errors import ConfigError, one_line


def optional_library(name: str, extra: str, beside: str = "") -> ModuleType:
    """The library `name`, imported.

    Args:
        name: its module.
        extra: modalloy's extra that installs it.
        beside: what else must fit for it to load, for the error, such as "a torchvision that fits your torch".

    Raises:
        ConfigError: it isn't installed, or can't be loaded.

    >>> optional_library("json", "none").__name__
    'json'
    """
    try:
        return import_module(name)
    # A torchvision that doesn't fit the torch beside it raises a RuntimeError.
    except Exception as error:
        reason = one_line(error)
        needed = f" with {beside}" if beside else ""
        raise ConfigError(f"{name} can't be loaded: {reason}; pip install 'modalloy[{extra}]'{needed}.") from error
