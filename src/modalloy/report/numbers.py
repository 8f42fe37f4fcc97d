"""How numbers are written for people; what isn't a finite number becomes a dash."""

import math
from typing import Any

MISSING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fixed(value: Any, digits: int = 1) -> str:
    """A number with so many decimals.

    >>> fixed(71.25), fixed(-3.04), fixed(float("nan")), fixed(None)
    ('71.2', '−3.0', '–', '–')
    """
    if not is_number(value):
        return MISSING
    text = f"{value:.{digits}f}"
    # A rounded-off negative is no negative: "-0.0" would read as a loss.
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", _MINUS)


def signed(value: Any, digits: int = 1) -> str:
    """A difference, with its sign unless it rounds to 0.

    >>> signed(2.5), signed(-2.5), signed(0.01)
    ('+2.5', '−2.5', '0.0')
    """
    text = fixed(value, digits)
    return text if text == MISSING or text.startswith(_MINUS) or float(text) == 0 else f"+{text}"


def compact(value: Any) -> str:
    """A number of any size with three significant digits, without trailing zeros.

    >>> compact(0.012345), compact(412.34), compact(3), compact(2.50)
    ('0.0123', '412', '3', '2.5')
    """
    if not is_number(value):
        return MISSING
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", _MINUS)


def rank(value: Any) -> str:
    """A rank, a half one only where a tie makes it so.

    >>> rank(3.0), rank(2.5), rank(float("inf"))
    ('3', '2.5', '–')
    """
    if not is_number(value):
        return MISSING
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def duration(seconds: Any) -> str:
    """A time span in the units that people use.

    >>> duration(0.05), duration(8.24), duration(83), duration(7325)
    ('< 0.1 s', '8.2 s', '1 min 23 s', '2 h 2 min')
    """
    if not is_number(seconds):
        return MISSING
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
