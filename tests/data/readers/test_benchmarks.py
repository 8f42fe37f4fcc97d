import pytest

from modalloy.data.build import Record
from modalloy.data.readers.benchmarks import KARPATHY_IMAGES, check_benchmark
from modalloy.errors import DataError


def records(**sizes):
    return [one for split, size in sizes.items() for one in [Record("a", "a.jpg", split, ())] * size]


@pytest.mark.parametrize(
    ("benchmark", "sizes"),
    [
        ("flickr8k", {"train": 6000, "val": 1000, "test": 1000}),
        ("flickr30k", {"train": 29_000, "val": 1014, "test": 1000}),
        ("coco", {"train": 82_783, "restval": 30_504, "val": 5000, "test": 5000}),
        ("coco", {"train": 113_287}),
        ("coco", {"train": 82_783}),
        ("coco", {"Restval": 30_504}),
        ("flickr8k", {"train": 6000, "val": 1000}),
    ],
)
def test_published_parts_pass(benchmark, sizes):
    expected = {"test": sizes["test"]} if "test" in sizes else {}
    assert check_benchmark(benchmark, records(**sizes), "file", "rename it") == expected


@pytest.mark.parametrize("benchmark", KARPATHY_IMAGES)
@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("change", [-1, 1])
def test_one_image_more_or_less_is_an_error(benchmark, split, change):
    published = KARPATHY_IMAGES[benchmark][split][0]
    message = (
        f"^file: the Karpathy {split} part of {benchmark} has {published:,} image.* {published + change:,};.*rename"
    )
    with pytest.raises(DataError, match=message):
        check_benchmark(benchmark, records(**{split: published + change}), "file", "rename it")
