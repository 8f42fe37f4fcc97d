import pytest

from modalloy.data.images import SUFFIXES
from modalloy.data.readers.passed_over import passed_over, passed_over_line


def test_films_and_pictures_of_other_formats_are_counted_wherever_they_are():
    assert passed_over(["IMG_1.HEIC", "x/IMG_2.heic", "x/IMG_2.MOV"]) == {".heic": 2, ".mov": 1}


@pytest.mark.parametrize(
    "name", ["a.txt", "a.json", "a.aae", "Thumbs.db", "desktop.ini", *(f"a{end}" for end in SUFFIXES)]
)
def test_what_is_read_or_accompanies_pictures_is_not_complained_about(name):
    assert passed_over(["a.jpg", *(f"{row}-{name}" for row in range(20))]) == {}


@pytest.mark.parametrize(("count", "told"), [(9, {}), (10, {".pcx": 10})])
def test_other_suffixes_are_told_of_where_they_are_frequent(count, told):
    assert passed_over(["a.jpg", *(f"{row}.pcx" for row in range(count))]) == told


def test_only_what_lies_beside_pictures_can_be_frequent():
    # An index in the folder has hundreds of files.
    assert passed_over(["a.jpg", *(f"index/{row}.lance" for row in range(20))]) == {}


def test_a_suffix_can_be_missing_or_anything():
    counts = passed_over(["a.jpg", *(f"{row}" for row in range(10)), *(f"{row}.\n\udce9" for row in range(12))])
    assert counts == {".\\n\\udce9": 12, "": 10}
    assert passed_over_line(counts).startswith("12 .\\n\\udce9, 10 without a suffix (")
