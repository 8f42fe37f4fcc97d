"""Reads single members of a tar in place: a picture in a tar has the path TAR/MEMBER, as if TAR were a folder.

An index of where each member's bytes are makes any of them one read away. Every read opens the tar for itself,
so threads and forked processes don't disturb each other.
"""

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from modalloy.data.item import check_path
from modalloy.errors import DataError, ImageError

TAR = ".tar"
MAX_PICTURE_BYTES = 256 * 2**20
"""A larger member isn't read as a picture: 64 million pixels of 24 bits take less without any compression."""

_MAX_HEADER_BYTES = 2**20
_INDEXES_KEPT = 32
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TarIndex:
    """Where a tar's plain files are, and what is wrong with it."""

    members: Mapping[str, tuple[int, int]]
    """Offset and size in bytes of each member, by name, in the tar's order."""
    faults: tuple[tuple[str, str], ...]
    """Members that can't be used and why; the name is empty where the whole tar is meant."""


def split_tar_path(path: Path) -> tuple[Path, str] | None:
    """The tar file and the member's name that a path TAR/MEMBER stands for; None for any other path."""
    if TAR not in str(path).lower():
        return None
    for end, part in enumerate(path.parts[:-1], start=1):
        if part.lower().endswith(TAR) and (tar := Path(*path.parts[:end])).is_file():
            return tar, "/".join(path.parts[end:])
    return None


def read_member(tar: Path, name: str, limit: int = MAX_PICTURE_BYTES) -> bytes:
    """A member's bytes.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "cat.txt").write_text("A cat.")
    >>> with tarfile.open(folder / "000.tar", "w") as tar:
    ...     tar.add(folder / "cat.txt", "cat.txt")
    >>> read_member(folder / "000.tar", "cat.txt")
    b'A cat.'

    Args:
        tar: the uncompressed tar.
        name: the member's name, without "./".
        limit: the most bytes that it may have.

    Raises:
        ImageError: the tar can't be read or is compressed, or the member isn't there, is cut off or too large.
    """
    place = tar_index(tar).members.get(name)
    if place is None:
        raise ImageError(f"{tar}/{name} doesn't exist: the tar has no such member that can be read.")
    offset, size = place
    if size > limit:
        raise ImageError(f"{tar}/{name} has {size:,} bytes; at most {limit:,} are allowed: make it smaller.")
    try:
        with tar.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise ImageError(f"{tar} can't be read ({error.strerror}).") from None
    if len(content) < size:
        raise ImageError(f"{tar}/{name} is cut off; replace the tar.")
    return content


def tar_index(tar: Path) -> TarIndex:
    """A tar's index, kept for the last tars used; of a damaged tar, that of its sound part.

    Raises:
        ImageError: the tar isn't there, can't be read, or is compressed.
    """
    try:
        status = tar.stat()
        return _index(str(tar), status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ImageError(f"{tar} can't be read ({error.strerror}); check the path.") from None


@lru_cache(maxsize=_INDEXES_KEPT)
def _index(path: str, changed: int, size: int) -> TarIndex:
    members: dict[str, tuple[int, int]] = {}
    faults: list[tuple[str, str]] = []
    with _Headers(path) as file:
        _refuse_compressed(path, file.read(8))
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                for header in _headers(tar):
                    name = PurePosixPath(header.name).as_posix()
                    problem = _problem(header, name, members, size)
                    if problem is None:
                        members[name] = (header.offset_data, header.size)
                    else:
                        faults.append((header.name, problem))
                faults.extend(_end_fault(file, tar.offset))
        # Damaged headers make tarfile raise nearly anything, as damaged pictures do Pillow.
        except Exception as error:
            faults.append(("", f"the tar is damaged or cut off ({error}); what follows is left out"))
    return TarIndex(members, tuple(faults))


class _Headers(io.FileIO):
    """A tar's file while its headers are read: a header that claims to be huge mustn't fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header of an impossible size")
        return super().read(size) or b""


def _refuse_compressed(path: str, start: bytes) -> None:
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise ImageError(
                f"{path} is compressed ({kind}), so that its members can't be read one by one; "
                "uncompress it to a plain .tar."
            )


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The headers of all members but folders, one by one."""
    end = 0
    while (header := tar.next()) is not None:
        # tarfile keeps all that it has read.
        tar.members.clear()  # type: ignore[attr-defined]
        if tar.offset <= end:
            raise tarfile.ReadError("a header that points backwards")
        end = tar.offset
        if not header.isdir():
            yield header


def _problem(header: tarfile.TarInfo, name: str, known: Mapping[str, tuple[int, int]], tar_size: int) -> str | None:
    if not header.isreg() or header.issparse():
        return "is a link, a device or a sparse file, not a plain one"
    try:
        # Bytes that aren't UTF-8 are for whoever builds the manifest to name.
        check_path(name.encode("utf-8", "replace").decode())
    except DataError as error:
        return str(error)
    if name in known:
        return "is in the tar twice; the first is kept"
    return "is cut off by the end of the tar" if header.offset_data + header.size > tar_size else None


def _end_fault(file: _Headers, end: int) -> Iterator[tuple[str, str]]:
    """What is wrong where the headers end: tarfile takes a damaged one for the end."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        yield "", f"the tar is damaged at byte {end:,}; what follows is left out"
    elif not block:
        yield "", "the tar has no end mark, so members may be missing; check that it is whole"
