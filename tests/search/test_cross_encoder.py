"""BLIP's matching head as a second stage, against transformers' own output of one pair at a time."""

import json

import pytest
import torch
import transformers
from encoders.hub import families
from PIL import Image
from safetensors.torch import load_file, save_file

from modalloy.errors import CheckpointError, ConfigError, ImageError
from modalloy.search.cross_encoder import CrossEncoder
from modalloy.search.rerank import Picture

TEXTS = ["a red phone", "the old dog runs with a small blue telephone", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return families.save_blip(tmp_path_factory.mktemp("itm") / "model")


@pytest.fixture(scope="module")
def images():
    noise = torch.randint(256, (5, 40, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in noise]


def shown(images, known=True):
    return [Picture(lambda image=image: image, str(n) if known else None) for n, image in enumerate(images)]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_scores_are_the_library_s(folder, images, batch_size):
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    model = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    expected = torch.empty(len(TEXTS), len(images))
    for row, text in enumerate(TEXTS):
        for place, image in enumerate(images):
            inputs = processor(images=image, text=text, truncation=True, max_length=35, return_tensors="pt")
            with torch.no_grad():
                expected[row, place] = model(**inputs, use_itm_head=True).itm_score[0, 1]
    stage = CrossEncoder(str(folder), batch_size=batch_size)
    found = stage(TEXTS, shown(images))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert float(found.std()) > 1e-4 and stage.global_weight == 1.0


def test_pictures_are_seen_once_while_there_is_room(folder, images):
    stage = CrossEncoder(str(folder))
    first = stage(TEXTS, shown(images))

    def never():
        raise AssertionError

    assert torch.equal(stage(TEXTS, [Picture(never, str(n)) for n in range(len(images))]), first)
    with pytest.raises(AssertionError):
        CrossEncoder(str(folder), held_bytes=1)(TEXTS, [Picture(never, "0")])


def test_what_cannot_be_read_has_no_score(folder, images):
    def lost():
        raise ImageError("lost")

    stage = CrossEncoder(str(folder))
    found = stage(["a red phone", "..."], [*shown(images[:1], known=False), Picture(lost)])
    assert found.isnan().tolist() == [[False, True], [True, True]]
    assert stage(TEXTS, []).shape == (3, 0) and stage([], shown(images)).shape == (0, 5)


def test_another_model_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"no folder 'nowhere/model'.*HF_HUB_OFFLINE"):
        CrossEncoder("nowhere/model")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = {name: value for name, value in load_file(copy / "model.safetensors").items() if "itm_head" not in name}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 2 weights .* itm_head"):
        CrossEncoder(str(copy))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    with pytest.raises(ConfigError, match="'itm' takes 'blip'"):
        CrossEncoder(str(copy))
