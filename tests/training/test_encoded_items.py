import torch
from torch.nn.functional import normalize

from modalloy.encoders import Encoded
from modalloy.training.encoded_items import EncodedItems, encoded_gallery


def encoded(width: int, lengths: list[int]) -> Encoded:
    embedding = normalize(torch.randn(len(lengths), width), dim=-1)
    return Encoded(embedding, torch.randn(sum(lengths), width), torch.tensor(lengths))


def test_a_gallery_holds_what_was_added_wherever_it_stood():
    """Image 1 of 4 is missing; images 0 and 3 with their captions are the sample."""
    torch.manual_seed(0)
    caption_image = torch.tensor([3, 0, 1, 2, 3, 0])
    images, captions = (
        EncodedItems("image", torch.tensor([0, 1, 3])),
        EncodedItems("text", torch.tensor([0, 1, 2, 4, 5])),
    )
    made: dict = {}
    for modality, items, batches in (
        ("image", images, [[2, 3], [0]]),
        ("text", captions, [[0, 1], [3], [4, 5]]),
    ):
        for rows in batches:
            levels = {level: encoded(4, [2 + row for row in rows]) for level in ("high", "mid")}
            items.add(torch.tensor(rows), levels)
            for place, row in enumerate(rows):
                tokens = {level: each.tokens_of_each()[place] for level, each in levels.items()}
                made[modality, row] = levels["high"].embedding[place], tokens
    gallery = encoded_gallery(images, captions, caption_image)
    image_rows, caption_rows = [2, 3, 0], [0, 1, 3, 4, 5]
    for found, (modality, rows) in zip(
        (gallery.image, gallery.text), (("image", image_rows), ("text", caption_rows)), strict=True
    ):
        assert torch.equal(found, torch.stack([made[modality, row][0] for row in rows]))
    assert [image_rows[place] for place in gallery.caption_image] == caption_image[caption_rows].tolist()
    sample_images, sample_captions = [3, 0], [0, 1, 4, 5]
    assert [sample_images[place] for place in gallery.sample.caption_image] == caption_image[sample_captions].tolist()
    for modality, rows, levels in (
        ("image", sample_images, gallery.sample.tokens.image),
        ("text", sample_captions, gallery.sample.tokens.text),
    ):
        for level, tokens in levels.items():
            for row, values, mask in zip(rows, tokens.values, tokens.mask, strict=True):
                # An image's summary isn't compared.
                assert torch.equal(values[mask], made[modality, row][1][level][modality == "image" :])


def test_nothing_sampled_gives_no_sample():
    none = torch.empty(0, dtype=torch.long)
    images, captions = EncodedItems("image", none), EncodedItems("text", none)
    for items in (images, captions):
        items.add(torch.arange(2), {"high": encoded(3, [1, 1])})
    assert encoded_gallery(images, captions, torch.arange(2)).sample is None
