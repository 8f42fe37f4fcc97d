"""Numbers of things in words."""


def counted(count: int, thing: str) -> str:
    """How many there are of a thing, whose name takes an "s" where they are several.

    >>> counted(1, "picture"), counted(2000, "picture")
    ('1 picture', '2,000 pictures')
    """
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
