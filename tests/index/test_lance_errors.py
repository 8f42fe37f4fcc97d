import pytest

from modalloy.errors import CheckpointError, DataError
from modalloy.index.lance_errors import guarded, storage_errors


class PanicException(BaseException):
    """As Rust's panics arrive."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("lance error:\n no magic, /root/.cargo/registry/src/x.rs:3:4"), r"\(lance error: no magic\)"),
        (ValueError("Table 'head' was not found"), "may be damaged.*modalloy index build"),
        (PanicException("index out of bounds"), "index out of bounds.*modalloy index build"),
        (OSError(28, "No space left on device"), "No space left on device.*make room"),
        (RuntimeError("LanceError(IO): File too large (os error 27), x"), "File too large.*make room"),
        (RuntimeError("Permission denied (os error 13) at path x"), "Permission denied.*permissions"),
        (RuntimeError("Commit conflict for version 3"), "by another process at the same time"),
    ],
)
def test_what_lancedb_raises_names_the_index_and_what_to_do(error, message):
    with pytest.raises(CheckpointError, match=message) as said, storage_errors("s3://bucket/index"):
        raise error
    assert str(said.value).startswith("s3://bucket/index ") and "\n" not in str(said.value)
    assert said.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), DataError("x"), KeyboardInterrupt()])
def test_what_is_not_lancedbs_stays_as_it_is(error):
    with pytest.raises(type(error)) as said, storage_errors("index"):
        raise error
    assert said.value is error


def test_a_guarded_method_is_like_it_was():
    class Index:
        location = "here"

        @guarded
        def halve(self, number: int, by: int = 2) -> int:
            """Divides."""
            if number % by:
                raise ValueError(f"{number} is odd")
            return number // by

    assert Index().halve(8) == 4 and Index().halve(number=9, by=3) == 3 and Index.halve.__doc__ == "Divides."
    with pytest.raises(CheckpointError, match=r"here can.t be read as an index \(3 is odd\)"):
        Index().halve(3)
