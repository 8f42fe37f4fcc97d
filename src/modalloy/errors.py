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
