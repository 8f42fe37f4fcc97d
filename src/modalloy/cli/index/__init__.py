"""modalloy index: what makes an index and keeps it current."""

from modalloy.cli.index.optimize import Optimize
from modalloy.cli.verb import VerbGroup


class Index(VerbGroup):
    """See `VerbGroup`."""

    name = "index"
    summary = "Make an index of your pictures, and keep it current."
    verbs = (Optimize(),)
