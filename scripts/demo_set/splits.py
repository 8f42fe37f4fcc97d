"""Which picture goes into which split, by family and by a draw that depends on seed and names alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Split and captions by picture's path.
Assignment = dict[str, tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Candidate:
    """A picture that passed every check."""

    path: str
    captions: tuple[str, ...]
    family: int

    @property
    def is_informative(self) -> bool:
        """Whether a searcher could mean this picture by its captions: two, or a title of two words."""
        return len(self.captions) >= 2 or len(self.captions[0].split()) >= 2


def draw(seed: int, name: str) -> str:
    """A key that sorts names into a random order, the same on every machine and whatever the other names."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def assign_splits(
    candidates: Sequence[Candidate],
    sizes: Mapping[str, int],
    seed: int,
    most_per_family: int,
    largest_held_out_family: int,
) -> Assignment:
    """Draws each held-out split of `sizes`, one picture a family, and gives the other families to `train`.

    Within a held-out split no two pictures share a caption, whatever the letters' case. Families of more than
    `largest_held_out_family` pictures stay in `train`, where all their pictures are of use.

    Args:
        sizes: number of pictures of each held-out split, in the order in which they draw.
        most_per_family: how many pictures of a family `train` takes.

    Returns:
        split and captions by picture's path; pictures left over aren't in it.
    """
    families: dict[int, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda candidate: draw(seed, candidate.path)):
        families.setdefault(candidate.family, []).append(candidate)
    waiting = [members for members in families.values() if len(members) <= largest_held_out_family]
    chosen: Assignment = {}
    for split, size in sizes.items():
        taken: set[str] = set()
        drawn: list[list[Candidate]] = []
        for members in waiting:
            picture = max(members, key=lambda member: (member.is_informative, len(member.captions)))
            captions = tuple(caption for caption in picture.captions if caption.casefold() not in taken)
            # Without its title a picture would be asked for only by words of another.
            if len(drawn) == size or not picture.is_informative or captions[:1] != picture.captions[:1]:
                continue
            taken.update(caption.casefold() for caption in captions)
            chosen[picture.path] = (split, captions)
            drawn.append(members)
        waiting = [members for members in waiting if members not in drawn]
    held_out = {candidate.family for candidate in candidates if candidate.path in chosen}
    for family, members in families.items():
        if family not in held_out:
            chosen.update({member.path: ("train", member.captions) for member in members[:most_per_family]})
    return chosen
