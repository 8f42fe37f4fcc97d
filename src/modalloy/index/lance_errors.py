"""What LanceDB says of files that are damaged, missing, or can't be written, as errors of ours."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from modalloy.errors import CheckpointError, one_line

_P = ParamSpec("_P")
_Result = TypeVar("_Result")
_PANICS = ("PanicException", "RustPanic")
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "see to its permissions"),
}
_OS_ERROR = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_PLACE_IN_RUST = re.compile(r",? \S*/(\.cargo|rustc)/\S*")


@contextmanager
def storage_errors(location: str) -> Iterator[None]:
    """Turns what LanceDB raises into a CheckpointError that names the index and says how to mend it."""
    try:
        yield
    # Rust's errors arrive as RuntimeError, ValueError or OSError; its panics aren't even an Exception.
    except BaseException as error:
        if not isinstance(error, RuntimeError | ValueError | OSError) and type(error).__name__ not in _PANICS:
            raise
        raise CheckpointError(_in_our_words(location, error)) from error


def guarded(
    method: Callable[Concatenate[Any, _P], _Result],
) -> Callable[Concatenate[Any, _P], _Result]:
    """A method within `storage_errors` of its object's location."""

    @wraps(method)
    def within(self: Any, /, *arguments: _P.args, **options: _P.kwargs) -> _Result:
        with storage_errors(self.location):
            return method(self, *arguments, **options)

    return within


def _in_our_words(location: str, error: BaseException) -> str:
    found = _OS_ERROR.search(str(error))
    code = int(found[1] or found[2]) if found else 0
    if code in _REMEDIES:
        return (
            f"{location} can't be written to or read ({os.strerror(code)}); {_REMEDIES[code]}, then run the same "
            "again: what was committed before is whole."
        )
    if "conflict" in str(error).lower():
        return f"{location} was written to by another process at the same time; run the same again."
    reason = _PLACE_IN_RUST.sub("", one_line(error))
    return (
        f"{location} can't be read as an index ({reason}); its storage may be out of reach, or it may be damaged: then "
        "remove it, and make it again (modalloy index build)."
    )
