"""What modalloy raises when something outside the code is wrong.

Each message says what was wrong, what was expected, what was got and how to mend it; the command line prints
it as one line and exits with 2.
"""


class ModalloyError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(ModalloyError):
    """An option has a value that can't work."""


class DataError(ModalloyError):
    """A collection, a manifest or an array doesn't hold what it must."""


class ImageError(DataError):
    """A picture can't be decoded safely."""


class FeatureError(ModalloyError):
    """Stored features are damaged, incomplete or made by another encoder."""


class CheckpointError(ModalloyError):
    """A saved model is damaged, incomplete or not ours."""


def one_line(error: BaseException) -> str:
    """What another library's error says, in one line of at most 200 letters; its kind where it says nothing.

    >>> one_line(ValueError("expected 3,\\n  got 4"))
    'expected 3, got 4'
    """
    return " ".join(str(error).split())[:200] or type(error).__name__
