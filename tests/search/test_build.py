import logging

import pytest
import torch

from modalloy.data import Manifest
from modalloy.encoders import Encoder
from modalloy.errors import ConfigError, DataError
from modalloy.search import Entry, build_gallery


def test_images(encoder: Encoder, collection: Manifest) -> None:
    gallery = build_gallery(encoder, collection, "image", batch_size=3)
    assert gallery.entries[0] == Entry("red", "red.png", "a red square, 0")
    assert gallery.entries[3] == Entry("grey", "grey.png", None)
    paths = [collection.absolute(item) for item in collection]
    torch.testing.assert_close(gallery.vectors, encoder.encode_images(paths).embedding)
    assert gallery.fingerprints["text"] == encoder.fingerprint("text")
    assert gallery.search(gallery.vectors[:1], k=1)[0][0].path == str(collection.absolute(collection[0]))


def test_captions(encoder: Encoder, collection: Manifest) -> None:
    gallery = build_gallery(encoder, collection, "text", batch_size=4)
    assert [entry.id for entry in gallery.entries] == collection.caption_ids
    assert [entry.caption for entry in gallery.entries] == collection.captions
    assert gallery.entries[1].path == "green.png"
    torch.testing.assert_close(gallery.vectors, encoder.encode_texts(collection.captions).embedding)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_stored_vectors_are_taken_as_they_are(encoder: Encoder, collection: Manifest, modality) -> None:
    rows = len(collection) if modality == "image" else len(collection.captions)
    vectors = torch.randn(rows, 7)
    assert torch.equal(build_gallery(encoder, collection, modality, vectors).vectors, vectors)


def test_stored_vectors_of_another_collection_are_refused(encoder: Encoder, collection: Manifest) -> None:
    with pytest.raises(DataError, match="got 2 for 4"):
        build_gallery(encoder, collection, "image", torch.ones(2, 3))


@pytest.mark.parametrize("batch_size", [1, 32])
def test_an_unreadable_picture_keeps_its_row_and_loses_no_other(
    encoder: Encoder, collection: Manifest, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    collection.absolute(collection[1]).write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        gallery = build_gallery(encoder, collection, "image", batch_size=batch_size)
    assert "green.png" in caplog.text
    assert gallery.searchable.tolist() == [True, False, True, True]
    found = gallery.search(encoder.encode_texts(["green"]).embedding, k=4)[0]
    assert {hit.id for hit in found} == {"red", "blue", "grey"}


def test_an_encoder_of_the_other_modality_is_refused(encoder: Encoder, collection: Manifest) -> None:
    encoder.modalities = ("text",)
    with pytest.raises(ConfigError, match="encodes only texts"):
        build_gallery(encoder, collection, "image")


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_batch_size_below_one_is_refused(encoder: Encoder, collection: Manifest, modality) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        build_gallery(encoder, collection, modality, batch_size=0)


def test_a_collection_without_captions_gives_an_empty_gallery(encoder: Encoder, collection: Manifest) -> None:
    assert len(build_gallery(encoder, collection[3:], "text")) == 0
