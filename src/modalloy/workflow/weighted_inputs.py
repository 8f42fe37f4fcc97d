"""Which inputs are meant, by their positions or names."""

from collections.abc import Sequence

from modalloy.errors import ConfigError


def positions_of(chosen: Sequence[str | int], names: Sequence[str]) -> tuple[int, ...]:
    """The positions of inputs given by position, from 0, or by name, in the inputs' order.

    Raises:
        ConfigError: there is no such input, several have that name, or one is chosen twice.

    >>> positions_of(["b", 0], ["a", "b", "c"])
    (0, 1)
    """
    found = [_position(each, names) for each in chosen]
    for position in found:
        if found.count(position) > 1:
            raise ConfigError(
                f"fusion.weighted_inputs must name each input once, got {names[position]!r} twice in {list(chosen)}."
            )
    return tuple(sorted(found))


def _position(chosen: str | int, names: Sequence[str]) -> int:
    places = [chosen] if isinstance(chosen, int) else [place for place, name in enumerate(names) if name == chosen]
    if len(places) > 1:
        raise ConfigError(f"fusion.weighted_inputs: {len(places)} inputs are called {chosen!r}; give positions from 0.")
    if not places or not 0 <= places[0] < len(names):
        raise ConfigError(
            f"fusion.weighted_inputs: there is no input {chosen!r}; name some of {', '.join(names)}, "
            f"or positions from 0 to {len(names) - 1}."
        )
    return places[0]
