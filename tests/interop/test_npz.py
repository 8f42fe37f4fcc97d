import io
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import DataError
from modalloy.interop.npz import contents_digest, read_npz


def ragged(*pieces):
    array = np.empty(len(pieces), dtype=object)
    array[:] = pieces
    return array


def npy(pickled: bytes, shape=(1,)) -> bytes:
    """An .npy file that holds an object array with this pickle."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
    return file.getvalue() + pickled


def write_member(path, raw: bytes, name="feat.npy"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, raw)
    return path


def reduced(function, *arguments):
    """An object whose pickle calls a function."""
    return type("Reduced", (), {"__reduce__": lambda self: (function, arguments)})()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f2", "<i8", ">i4", "|u1", "|b1", "<U5", ">U5"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("saved", [np.savez, np.savez_compressed])
def test_plain_arrays_are_as_numpy_reads_them(tmp_path, dtype, order, saved):
    array = np.asarray(np.arange(12).reshape(3, 4).astype(dtype), order=order)
    saved(tmp_path / "a.npz", feat=array, empty=array[:0])
    arrays = read_npz(tmp_path / "a.npz")
    assert arrays["feat"].dtype == array.dtype and np.array_equal(arrays["feat"], array)
    assert arrays["empty"].shape == (0, 4)
    assert set(read_npz(tmp_path / "a.npz", ["feat", "absent"])) == {"feat"}


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i8", "|b1", "<U5", ">U5"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_ragged_arrays_are_as_numpy_unpickles_them(tmp_path, dtype, order):
    pieces = [np.asarray(np.arange(n * 2).reshape(n, 2).astype(dtype), order=order) for n in (3, 1, 0, 4)]
    np.savez(tmp_path / "a.npz", feat=ragged(*pieces))
    got = read_npz(tmp_path / "a.npz")["feat"]
    trusted = np.load(tmp_path / "a.npz", allow_pickle=True)["feat"]
    assert got.shape == trusted.shape == (4,)
    for ours, theirs in zip(got, trusted, strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def test_texts_and_numbers_may_stand_in_an_object_array(tmp_path):
    np.savez(tmp_path / "a.npz", caption=ragged("a dog", "zwei Hünde"), number=ragged(np.float32(2), 3, True))
    arrays = read_npz(tmp_path / "a.npz")
    assert list(arrays["caption"]) == ["a dog", "zwei Hünde"]
    assert [each.item() for each in arrays["number"]] == [2.0, 3, True]
    assert arrays["number"][0].dtype == np.float32


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
def test_pickles_of_numpy_1_and_2_are_read(tmp_path, protocol, package):
    array = ragged(np.arange(3, dtype=np.float32), np.arange(2, dtype=np.float32))
    pickled = pickle.dumps(array, protocol)
    # Protocol 4 states each name's length before it.
    old, new = b"numpy._core.multiarray", f"{package}.multiarray".encode()
    for lead in (b"\x8c", b"c", b""):
        sized = (lead + bytes([len(old)]), lead + bytes([len(new)])) if lead == b"\x8c" else (lead, lead)
        pickled = pickled.replace(sized[0] + old, sized[1] + new)
    if protocol == 4:
        # The frame's length changes with the name's: frames are optional.
        assert pickled[2:3] == b"\x95"
        pickled = pickled[:2] + pickled[11:]
    write_member(tmp_path / "a.npz", npy(pickled, (2,)))
    if protocol == 2:
        # Python 2's way with bytes needs a codec's function; nobody writes features like that any more.
        with pytest.raises(DataError, match=r"names _codecs\.encode"):
            read_npz(tmp_path / "a.npz")
    else:
        assert [each.tolist() for each in read_npz(tmp_path / "a.npz")["feat"]] == [[0, 1, 2], [0, 1]]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"(posix|nt)\.system"),
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (getattr, "builtins.getattr"),
        (io.open, "(_?io|builtins).open"),
        (np.load, "numpy.load"),
        (np.frombuffer, r"numpy.*frombuffer"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_no_function_is_called(tmp_path, function, name, inside):
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()"
    arguments = {os.system: (f"touch {marker}",), io.open: (str(marker), "w")}.get(function, (code,))
    bad = reduced(function, *arguments)
    pickled = pickle.dumps(ragged(np.zeros(2), bad) if inside else bad)
    write_member(tmp_path / "a.npz", npy(pickled, (2,) if inside else (1,)))
    with pytest.raises(DataError, match=rf"names {name}; only arrays of numbers are accepted"):
        read_npz(tmp_path / "a.npz")
    assert not marker.exists()


def test_the_check_above_would_see_code_that_runs(tmp_path):
    marker = tmp_path / "ran"
    write_member(tmp_path / "a.npz", npy(pickle.dumps(reduced(os.system, f"touch {marker}"))))
    with np.load(tmp_path / "a.npz", allow_pickle=True) as arrays:
        arrays["feat"]
    assert marker.exists()


class Forged:
    """Pickles an array of a forged state."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        return np.ndarray.__reduce__(np.zeros(1))[0], (np.ndarray, (0,), b"b"), self.state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((1, (4,), np.dtype("f4"), False, b"too short"), "16 bytes expected"),
        ((1, (-1,), np.dtype("f4"), False, b""), "can't have the shape"),
        ((1, (2**40, 2**40), np.dtype("f4"), False, b""), "bytes expected"),
        ((1, (1,), np.dtype("O"), False, b"\x00" * 8), "numbers expected, got an array of type 'O8'"),
        ((1, (1,), np.dtype("V8"), False, b"\x00" * 8), "numbers expected, got an array of type 'V8'"),
        ((1, (1,), np.dtype("c8"), False, b"\x00" * 8), "numbers expected, got an array of type 'c8'"),
        ((1, (1,), np.dtype("M8[s]"), False, b"\x00" * 8), "numbers expected, got an array of type 'M8'"),
        ((1, (1,), "f4", False, b"\x00" * 4), "without a shape or a type"),
        ((1, "shape", np.dtype("f4"), False, b""), "without a shape or a type"),
        ((1, (1,), np.dtype("f4"), False, [1.0]), "without its bytes"),
        ((1, (1,), np.dtype("f4")), "unknown state"),
        ((1, (1, 1, True), np.dtype("f4"), False, b"\x00" * 4), "without a shape"),
    ],
)
def test_forged_array_states_are_refused(tmp_path, state, message):
    write_member(tmp_path / "a.npz", npy(pickle.dumps(ragged(np.zeros(1), Forged(*state))), (2,)))
    with pytest.raises(DataError, match=f"'feat' can't be read .*{message}"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "pickled",
    [
        pickle.dumps([np.zeros(2)]),
        pickle.dumps({}),
        pickle.dumps(np.zeros(1)),
        pickle.dumps(ragged([1, 2])),
        pickle.dumps(ragged(None)),
        pickle.dumps(ragged(b"bytes")),
        pickle.dumps(ragged(10**30)),
        pickle.dumps(ragged(ragged(np.zeros(2)))),
        pickle.dumps(ragged(np.zeros(1), np.zeros(1))),
        pickle.dumps(ragged(np.zeros(1)).reshape(1, 1)),
        # BUILD on the function itself: sets attributes on what find_class gave.
        b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02cnumpy\ndtype\nN}X\x08\x00\x00\x00__init__K\x01s\x86b.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x02cnumpy\ndtype\n(I1\ntRI5\nb.",
        b"\x80\x04\x82\x01.",
        b"(lp0\n0g0\n",
        b"",
        b".",
        b"\x00\x01garbage",
        pickle.dumps(ragged(np.zeros(1)))[:-20],
    ],
)
def test_other_pickles_are_refused(tmp_path, pickled):
    write_member(tmp_path / "a.npz", npy(pickled))
    with pytest.raises(DataError, match="the array 'feat' can't be read"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "pickled",
    [
        # A memo index of 30 million.
        b"\x80\x02Nr\x80\xc3\xc9\x01.",
        # 4 MB in another byte order, 100 times over.
        pickle.dumps(ragged(*[np.zeros(2**20, ">f4")] * 100)),
    ],
)
def test_a_small_pickle_takes_little_memory(tmp_path, monkeypatch, pickled):
    monkeypatch.setattr("modalloy.interop.npz.MAX_BYTES", 2**24)
    write_member(tmp_path / "a.npz", npy(pickled, (100,)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="the array 'feat' can't be read"):
            read_npz(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@given(st.data())
def test_a_damaged_pickle_never_gives_anything_but_arrays(tmp_path_factory, data):
    pickled = bytearray(pickle.dumps(ragged(np.arange(3.0), np.arange(2.0)), 3))
    for _ in range(data.draw(st.integers(1, 4))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    path = write_member(tmp_path_factory.mktemp("fuzz") / "a.npz", npy(bytes(pickled), (2,)))
    try:
        got = read_npz(path)["feat"]
    except DataError:
        return
    assert all(isinstance(each, str) or each.dtype.kind in "biufU" for each in got)


@pytest.mark.parametrize("kept", [0, 10, 100, -30])
def test_a_truncated_file_is_refused(tmp_path, kept):
    np.savez(tmp_path / "a.npz", feat=np.zeros((20, 20)))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:kept])
    with pytest.raises(DataError, match=r"a\.npz can't be read as \.npz .*; get it again"):
        read_npz(tmp_path / "a.npz")
    assert contents_digest(tmp_path / "a.npz") is None


def test_flipped_bits_are_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", feat=np.zeros((20, 20)))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[500] ^= 1
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(DataError, match="Bad CRC-32"):
        read_npz(tmp_path / "a.npz")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz can't be read as \.npz \(it isn't a file\)"):
        read_npz(tmp_path / "a.npz")
    assert contents_digest(tmp_path / "a.npz") is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.npz doesn't exist"):
        read_npz(tmp_path / "absent.npz")
    assert contents_digest(tmp_path / "absent.npz") is None


def test_a_bomb_is_refused_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("feat.npy", bytes(3_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    with pytest.raises(DataError, match="'feat' takes 3,000,000 bytes, at most 1,000,000 are read"):
        read_npz(tmp_path / "a.npz", max_bytes=1_000_000)


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ({"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**20)}, b"", "bytes expected"),
        ({"descr": "<f4", "fortran_order": False, "shape": (3,)}, b"\x00" * 8, "12 bytes expected"),
        ({"descr": "<f4", "fortran_order": False, "shape": (1,)}, b"\x00" * 8, "4 bytes expected"),
        ({"descr": "<c8", "fortran_order": False, "shape": (1,)}, b"\x00" * 8, "numbers or texts expected"),
        ({"descr": [("a", "<f4")], "fortran_order": False, "shape": (1,)}, b"\x00" * 4, "numbers or texts expected"),
        ({"descr": [("a", "|O")], "fortran_order": False, "shape": (1,)}, b"\x00" * 8, "numbers or texts expected"),
    ],
)
def test_odd_headers_are_refused(tmp_path, header, body, message):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    write_member(tmp_path / "a.npz", file.getvalue() + body)
    with pytest.raises(DataError, match=message):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "raw", [b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00", b"not an array", b"\x93NUMPY\x01\x00\xff\xff{"]
)
def test_a_member_that_is_no_array_is_refused(tmp_path, raw):
    write_member(tmp_path / "a.npz", raw)
    with pytest.raises(DataError, match="the array 'feat' can't be read"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    file = io.BytesIO()
    np.save(file, np.zeros(2))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("feat.npy", file.getvalue())
        archive.writestr("feat.npy", file.getvalue())
    with pytest.raises(DataError, match="two arrays called 'feat'"):
        read_npz(tmp_path / "a.npz")


def test_the_digest_is_of_the_contents(tmp_path):
    np.savez(tmp_path / "a.npz", feat=np.zeros(3))
    np.savez_compressed(tmp_path / "b.npz", feat=np.zeros(3))
    np.savez(tmp_path / "c.npz", feat=np.ones(3))
    digests = [contents_digest(tmp_path / f"{name}.npz") for name in "abc"]
    os.utime(tmp_path / "a.npz", (0, 0))
    assert contents_digest(tmp_path / "a.npz") == digests[0] == digests[1] != digests[2]
