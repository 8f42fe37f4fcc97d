import re
from pathlib import Path

import pytest

from modalloy.data.readers.braces import MAX_FILES, expand_braces, has_braces
from modalloy.errors import DataError


@pytest.mark.parametrize(
    ("pattern", "folder", "files"),
    [
        ("a/{8..11}.tar", "a", ["a/8.tar", "a/9.tar", "a/10.tar", "a/11.tar"]),
        ("{00..02}.tar", ".", ["00.tar", "01.tar", "02.tar"]),
        ("/{x,y}/{0..1}", "/", ["/x/0", "/x/1", "/y/0", "/y/1"]),
        ("a/b{,_c}.json", "a", ["a/b.json", "a/b_c.json"]),
    ],
)
def test_expansion(pattern, folder, files):
    assert expand_braces(pattern) == (Path(folder), [Path(file) for file in files])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{a}.tar", "braces hold a range such as {000..012} or a list"),
        ("{}.tar", "braces hold a range"),
        ("{a..c}.tar", "braces hold a range"),
        ("{3..1}.tar", "{3..1} names 0 files"),
        ("{0..99999999999}.tar", "names 100,000,000,000 files; 1 to 100,000 are allowed"),
        ("{1..1000}/{1..1000}.tar", f"names 1,000,000 files; at most {MAX_FILES:,}"),
    ],
)
def test_bad_patterns(pattern, message):
    with pytest.raises(DataError, match=re.escape(message)):
        expand_braces(pattern)


def test_a_file_of_that_name_is_no_pattern(tmp_path):
    assert has_braces(tmp_path / "{0..1}.tar") and not has_braces(tmp_path / "0.tar")
    (tmp_path / "{0..1}.tar").touch()
    assert not has_braces(tmp_path / "{0..1}.tar")
