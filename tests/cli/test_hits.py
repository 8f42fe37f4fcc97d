import io
import re
from dataclasses import asdict

import pytest
from rich.console import Console

from modalloy.cli.hits import show_hits
from modalloy.search import Hit

FOLDER = "/home/me/some/where/demo_set/images"
SHARES = {"fused": 0.123, "EfficientNet-Lite0 + subwords": -0.456, "ViT-S/14 + MiniLM": 0.789}


def shown(*hits, width=80, parts=("a telephone",)):
    console = Console(width=width, file=io.StringIO())
    found = [asdict(hit) | {"caption": hit.caption} for hit in hits]
    show_hits({"query": "a [b]telephone", "parts": parts, "hits": found}, console)
    out = console.file.getvalue()
    assert all(len(line) <= width for line in out.splitlines()) and "…" not in out
    return out


def explained(name="phone", **changes):
    told = {"contributions": SHARES, "part_contributions": (1.5, -0.375), "rerank_score": 0.625, **changes}
    return Hit(name, 0.875, standard_score=3.25, path=f"{FOLDER}/{name}.webp", captions=("Phone",), **told)


@pytest.mark.parametrize("width", [80, 120])
def test_numbers_and_names_are_whole_however_much_is_explained(width):
    out = shown(explained(), explained("hand-phone"), width=width, parts=("a telephone", "a [i]computer"))
    row = next(line for line in out.splitlines() if "│ 2 │" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[:6] == ["2", "0.875", "+3.2", "0.625", "hand-phone", "Phone"]
    assert cells[6].endswith("hand-phone.webp")
    told = " ".join(out.split())
    assert told.count("0.123 of fused, -0.456 of EfficientNet-Lite0 + subwords, 0.789 of ViT-S/14 + MiniLM") == 2
    assert told.count("1.500 by a telephone, -0.375 by a [i]computer") == 2


@pytest.mark.parametrize(
    ("width", "path"), [(120, f"{FOLDER}/phone.webp"), (64, ".../images/phone.webp"), (52, "phone.webp")]
)
def test_of_a_path_the_last_parts_that_fit_are_shown(width, path):
    out = shown(Hit("p", 0.5, path=f"{FOLDER}/phone.webp"), width=width)
    assert out.splitlines()[-2].split("│")[-2].strip() == path


def test_a_long_id_is_whole_though_on_several_lines():
    name = "a-name-" * 20
    out = shown(explained(name, contributions=None, part_contributions=None))
    column = "".join(line.split("│")[5].strip() for line in out.splitlines() if line.startswith("│"))
    assert column == name


def test_a_path_that_the_id_tells_is_left_out():
    paths = {"dunes:8.jpg": "/home/me/dunes/8.jpg", "9.jpg": "/home/me/9.jpg", "a %231.jpg": "/home/me/a #1.jpg"}
    hits = [Hit(id, 0.5, path=path) for id, path in paths.items()]
    assert "picture" not in shown(*hits)
    assert "picture" in shown(*hits, Hit("8.jpg", 0.5, path="/home/me/18.jpg"))
    assert "picture" in shown(*hits, explained())


def test_an_encoder_without_parts_is_told():
    single = explained(contributions=None, part_contributions=(0.875,))
    assert re.search("score:|no parts", shown(single))[0] == "no parts"
    both = shown(explained(contributions=None), parts=("a dog", "a cat"))
    assert "-0.375 by a cat" in both and "no parts" in both
    assert "parts" not in shown(explained(contributions=None, part_contributions=None))
