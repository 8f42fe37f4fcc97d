"""modalloy index: what makes an index and keeps it current."""

from modalloy.cli.index.add import Add
from modalloy.cli.index.build import Build
from modalloy.cli.index.export import Export
from modalloy.cli.index.listing import List
from modalloy.cli.index.optimize import Optimize
from modalloy.cli.index.remove import Remove
from modalloy.cli.index.take_in import TakeIn
from modalloy.cli.index.update import Update
from modalloy.cli.index.verify import Verify
from modalloy.cli.verb import VerbGroup


class Index(VerbGroup):
    """See `VerbGroup`."""

    name = "index"
    summary = "Make an index of your pictures, and keep it current."
    verbs = (Build(), Add(), Update(), Remove(), List(), Verify(), Optimize(), Export(), TakeIn())
