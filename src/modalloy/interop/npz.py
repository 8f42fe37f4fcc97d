"""Reads NumPy's .npz files without trusting them.

Arrays of numbers and texts are read by NumPy with `allow_pickle=False`. An object array is a pickle: a program that
the file brings along. Ours gets no NumPy object in its hands, only stand-ins that note what they are asked to be, and
the arrays are then made from those notes; so neither a foreign function nor a forged array state can do anything.
"""

import io
import pickle
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modalloy.errors import DataError, one_line
from modalloy.files import sha256_of_text

MAX_BYTES = 256 * 2**20
"""An array that takes more bytes unpacked is refused: a few kilobytes can unpack to terabytes."""

Array = npt.NDArray[Any]

_NUMBERS = "biuf"
_TEXTS = "U"
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_UNREADABLE = (
    OSError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: str | Path, names: Collection[str] | None = None, max_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """The arrays of an .npz file: numbers, texts, or one-dimensional object arrays of arrays and texts.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "ragged.npz"
    >>> ragged = np.empty(2, dtype=object)
    >>> ragged[:] = [np.zeros(1), np.ones(3)]
    >>> np.savez(file, feat=ragged, att=np.eye(2))
    >>> arrays = read_npz(file)
    >>> [len(each) for each in arrays["feat"]], arrays["att"].shape
    ([1, 3], (2, 2))

    Args:
        path: the file.
        names: the arrays wanted, where there; by default all.
        max_bytes: the most that an array may take unpacked.

    Raises:
        DataError: the file is missing, damaged, too large, or holds something else.
    """
    path = Path(path)
    try:
        with _opened(path) as archive:
            return _read_members(path, archive, names, max_bytes)
    except FileNotFoundError:
        raise DataError(f"{path} doesn't exist; check the path.") from None
    except _UNREADABLE as error:
        raise DataError(f"{path} can't be read as .npz ({one_line(error)}); get it again.") from None


def contents_digest(path: str | Path) -> str | None:
    """SHA-256 over the names, sizes and CRC-32 checksums that an .npz file states of its arrays; None if damaged.

    It takes one short read at the file's end, and changes with the contents, but not with their date.
    """
    try:
        with _opened(Path(path)) as archive:
            stated = sorted((info.filename, info.file_size, info.CRC) for info in archive.infolist())
    except _UNREADABLE:
        return None
    return sha256_of_text(repr(stated))


def _opened(path: Path) -> zipfile.ZipFile:
    # Opening a named pipe or a device could wait for ever.
    if path.exists() and not path.is_file():
        raise OSError("it isn't a file")
    return zipfile.ZipFile(path)


def _read_members(
    path: Path, archive: zipfile.ZipFile, names: Collection[str] | None, max_bytes: int
) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if names is not None and name not in names:
            continue
        if name in arrays:
            raise DataError(f"{path} holds two arrays called {name!r}; make it again.")
        if info.file_size > max_bytes:
            raise DataError(
                f"{path}: the array {name!r} takes {info.file_size:,} bytes, at most {max_bytes:,} are read."
            )
        with archive.open(info) as member:
            # The size stated above may be a lie.
            raw = member.read(max_bytes + 1)
        if len(raw) > max_bytes:
            raise DataError(f"{path}: the array {name!r} unpacks to more than {max_bytes:,} bytes.")
        try:
            arrays[name] = _array_of(raw)
        except (*_UNREADABLE, DataError) as error:
            raise DataError(f"{path}: the array {name!r} can't be read ({one_line(error)}).") from None
    return arrays


def _array_of(raw: bytes) -> Array:
    """The array that the bytes of an .npy file hold."""
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise DataError(f"version {version} of the .npy format holds structured arrays, not numbers")
    shape, _, dtype = _READERS[version](file)
    if dtype.hasobject:
        if dtype.kind != "O":
            raise DataError(f"numbers or texts expected, got {dtype}")
        return _object_array(raw[file.tell() :], shape)
    _require_plain(dtype)
    _require_size(shape, dtype, len(raw) - file.tell())
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _require_plain(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in _NUMBERS + _TEXTS or dtype.subdtype is not None:
        raise DataError(f"numbers or texts expected, got {dtype}")


def _require_size(shape: tuple[int, ...], dtype: np.dtype[Any], got: int) -> None:
    expected = dtype.itemsize
    for length in shape:
        if length < 0:
            raise DataError(f"an array can't have the shape {shape}")
        expected *= length
    if got != expected:
        raise DataError(f"{expected} bytes expected for the shape {shape} of {dtype}, got {got}")


class _Dtype:
    """Stands for `numpy.dtype`: notes the type's code and byte order."""

    __slots__ = ("byte_order", "code")

    def __init__(self, code: object, *_: object) -> None:
        self.code = code
        self.byte_order: object = "|"

    def __setstate__(self, state: object) -> None:
        # (version, byte order, ...): what follows describes structured types, and strings, whose code has their length.
        if not isinstance(state, tuple) or len(state) < 2:
            raise pickle.UnpicklingError("a type with an unknown state")
        self.byte_order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """The type itself, if it is one of numbers or of texts."""
        if not isinstance(self.code, str) or self.byte_order not in ("|", "<", ">", "="):
            raise DataError(f"an array of the unknown type {self.code!r}")
        code = self.code.lstrip("<>=|")
        if code[:1] not in _NUMBERS + _TEXTS or not code[1:].isdecimal():
            raise DataError(f"numbers expected, got an array of type {self.code!r}")
        try:
            return np.dtype(f"{self.byte_order}{code}" if self.byte_order != "|" else code)
        except TypeError:
            raise DataError(f"an array of the unknown type {self.code!r}") from None


class _Array:
    """Stands for an array under construction: notes its shape, its type and its contents."""

    __slots__ = ("contents", "dtype", "fortran", "shape")

    def __init__(self, *_: object) -> None:
        self.shape: Any = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array with an unknown state")
        _, self.shape, self.dtype, self.fortran, self.contents = state

    def numpy(self) -> Array:
        """The array itself, if it is one of numbers or of texts."""
        dtype = self._checked_shape().numpy()
        if not isinstance(self.contents, bytes):
            raise DataError(f"an array of {dtype} without its bytes")
        _require_size(self.shape, dtype, len(self.contents))
        flat = np.frombuffer(self.contents, dtype) if self.contents else np.empty(0, dtype)
        native = flat.astype(dtype.newbyteorder("="), copy=False)
        return native.reshape(self.shape, order="F" if self.fortran else "C")

    def elements(self, shape: tuple[int, ...]) -> list[object]:
        """The elements of a one-dimensional object array."""
        dtype = self._checked_shape()
        if dtype.code not in ("O", "O8", "|O") or not isinstance(self.contents, list):
            raise DataError("an object array's pickle holds an array of another type")
        if self.shape != shape or len(shape) != 1 or len(self.contents) != shape[0]:
            raise DataError(f"an object array must be one list of arrays, got the shape {self.shape}")
        return self.contents

    def _checked_shape(self) -> _Dtype:
        whole = isinstance(self.shape, tuple) and all(type(length) is int for length in self.shape)
        if not whole or not isinstance(self.dtype, _Dtype):
            raise DataError("an array without a shape or a type")
        return self.dtype


class _Scalar:
    """Stands for a NumPy number outside an array: notes its type and its bytes."""

    __slots__ = ("contents", "dtype")

    def __init__(self, dtype: object = None, contents: object = None) -> None:
        self.dtype, self.contents = dtype, contents

    def numpy(self) -> Array:
        """The number as an array without axes."""
        whole = _Array()
        whole.__setstate__((1, (), self.dtype, False, self.contents))
        return whole.numpy()


class _Global:
    """A function or class that a pickle may name; it can be called, and nothing else."""

    __slots__ = ("_make",)

    def __init__(self, make: type[_Dtype] | type[_Array] | type[_Scalar]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a pickle that changes NumPy's functions")


class _Unpickler(pickle._Unpickler):
    """Knows the names that an array's pickle needs, of NumPy 1 and 2, and refuses all others.

    It is the one written in Python: that in C makes room for as many notes as a pickle of 10 bytes says, up to 64 GB.
    """

    def find_class(self, module: str, name: str) -> _Global:
        makers: dict[tuple[str, str], type[_Dtype] | type[_Array] | type[_Scalar]] = {
            ("numpy", "dtype"): _Dtype,
            ("numpy", "ndarray"): _Array,
        }
        for package in ("numpy.core", "numpy._core"):
            makers[f"{package}.multiarray", "_reconstruct"] = _Array
            makers[f"{package}.multiarray", "scalar"] = _Scalar
        if (module, name) not in makers:
            raise pickle.UnpicklingError(f"its pickle names {module}.{name}; only arrays of numbers are accepted")
        return _Global(makers[module, name])


def _object_array(pickled: bytes, shape: tuple[int, ...]) -> Array:
    try:
        whole = _Unpickler(io.BytesIO(pickled)).load()
    # A forged pickle may raise anything, also from what it makes of our stand-ins.
    except Exception as error:
        raise DataError(one_line(error)) from None
    if not isinstance(whole, _Array):
        raise DataError(f"an object array's pickle must hold an array, got {type(whole).__name__}")
    elements = whole.elements(shape)
    array, size = np.empty(len(elements), dtype=object), 0
    for position, element in enumerate(elements):
        array[position] = made = _element(element)
        # A pickle can name one array many times.
        size += len(made) if isinstance(made, str) else made.nbytes
        if size > MAX_BYTES:
            raise DataError(f"its elements take more than {MAX_BYTES:,} bytes")
    return array


def _element(element: object) -> Array | str:
    if isinstance(element, str):
        return element
    if isinstance(element, bool | float) or (isinstance(element, int) and element.bit_length() < 64):
        return np.asarray(element)
    if isinstance(element, _Array | _Scalar):
        return element.numpy()
    raise DataError(f"an object array must hold arrays of numbers, got {type(element).__name__}")
