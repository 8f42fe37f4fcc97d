from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from modalloy.data import Manifest
from modalloy.encoders import Encoder
from modalloy.errors import CheckpointError, ConfigError, DataError, ImageError
from modalloy.search import GallerySearcher, build_gallery


@pytest.fixture
def searcher(encoder: Encoder, collection: Manifest) -> GallerySearcher:
    galleries = [build_gallery(encoder, collection, modality) for modality in ("image", "text")]
    return GallerySearcher(encoder, *galleries)


def test_text_to_image(searcher: GallerySearcher) -> None:
    hits = searcher.by_text("something blue", k=2)
    assert [hit.id for hit in hits] == ["blue", "grey"]
    assert hits[0].score == pytest.approx(1.0)


def test_text_to_text(searcher: GallerySearcher) -> None:
    assert {hit.id for hit in searcher.by_text("green", k=2, target="text")} == {"green#0", "green#1"}


def test_image_to_text(searcher: GallerySearcher, collection: Manifest) -> None:
    hits = searcher.by_image(collection.absolute(collection[0]), k=1, target="text")
    assert [(hit.id, hit.caption) for hit in hits] == [("red#0", "a red square, 0")]


def test_image_to_image(searcher: GallerySearcher) -> None:
    assert searcher.by_image(Image.new("RGB", (5, 9), (20, 200, 0)), k=1)[0].id == "green"


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_a_blank_text_is_refused(searcher: GallerySearcher, text: str) -> None:
    with pytest.raises(DataError, match="at least one visible character"):
        searcher.by_text(text)


def test_an_unreadable_query_picture_is_refused(searcher: GallerySearcher, tmp_path: Path) -> None:
    (tmp_path / "query.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"query\.png"):
        searcher.by_image(tmp_path / "query.png")
    with pytest.raises(ImageError, match=r"absent\.png"):
        searcher.by_image(str(tmp_path / "absent.png"))


def test_a_gallery_that_is_not_there(encoder: Encoder, collection: Manifest) -> None:
    searcher = GallerySearcher(encoder, build_gallery(encoder, collection, "image"))
    with pytest.raises(ConfigError, match=r"no gallery of 'text'.*only of image"):
        searcher.by_text("red", target="text")


def test_galleries_in_each_others_place(encoder: Encoder, collection: Manifest) -> None:
    with pytest.raises(ConfigError, match="Expected a gallery of images, got one of texts"):
        GallerySearcher(encoder, build_gallery(encoder, collection, "text"))


def test_an_encoder_without_a_text_side(encoder: Encoder, collection: Manifest) -> None:
    encoder.modalities = ("image",)
    searcher = GallerySearcher(encoder, build_gallery(encoder, collection, "image"))
    assert searcher.by_image(collection.absolute(collection[2]), k=1)[0].id == "blue"
    with pytest.raises(ConfigError, match="not text"):
        searcher.by_text("red")


def test_other_weights_are_refused(searcher: GallerySearcher, collection: Manifest) -> None:
    other = type(searcher.encoder)(weights="1")
    with pytest.raises(CheckpointError, match=r"made by colours, image .* make the gallery again"):
        GallerySearcher(other, build_gallery(searcher.encoder, collection, "image"))


def test_an_encoder_whose_text_side_the_gallery_does_not_know_is_refused(
    encoder: Encoder, collection: Manifest
) -> None:
    gallery = build_gallery(encoder, collection, "image")
    with pytest.raises(CheckpointError, match="made by another encoder"):
        GallerySearcher(encoder, replace(gallery, fingerprints={"image": gallery.fingerprints["image"]}))


def test_save_and_open(searcher: GallerySearcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher.save(tmp_path / "galleries")
    asked = []
    monkeypatch.setattr(
        "modalloy.search.gallery_searcher.load_encoder", lambda spec: asked.append(spec) or searcher.encoder
    )
    opened = GallerySearcher.open(tmp_path / "galleries")
    assert asked == ["colours"]
    assert opened.by_text("red", target="text") == searcher.by_text("red", target="text")


def test_open_with_an_encoder_at_hand(encoder: Encoder, collection: Manifest, tmp_path: Path) -> None:
    GallerySearcher(encoder, build_gallery(encoder, collection, "image")).save(tmp_path)
    assert GallerySearcher.open(tmp_path, encoder).by_text("red", k=1)[0].id == "red"


def test_open_a_folder_without_galleries(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no gallery"):
        GallerySearcher.open(tmp_path)


def test_open_galleries_of_an_unknown_encoder(searcher: GallerySearcher, tmp_path: Path) -> None:
    searcher.save(tmp_path)
    with pytest.raises(ConfigError, match="Unknown encoder 'colours'"):
        GallerySearcher.open(tmp_path)
