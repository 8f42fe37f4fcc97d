import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import ConfigError, DataError
from modalloy.training.batches import PairRows, PairSampler, pair_loader, seed_epoch

CAPTIONS_PER_IMAGE = st.lists(st.integers(0, 4), min_size=2, max_size=12).filter(
    lambda counts: sum(count > 0 for count in counts) >= 2
)


def caption_image(counts: list[int]) -> torch.Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def drawn(sampler: PairSampler, epoch: int) -> list[list[tuple[int, int]]]:
    sampler.set_epoch(epoch)
    return [list(zip(rows.images.tolist(), rows.captions.tolist(), strict=True)) for rows in sampler]


@given(CAPTIONS_PER_IMAGE, st.integers(2, 5), st.integers(0, 99), st.integers(0, 99))
def test_an_epoch_visits_every_image_once(counts, batch_size, seed, epoch):
    images = caption_image(counts)
    sampler = PairSampler(images, batch_size=batch_size, seed=seed)
    batches = drawn(sampler, epoch)
    assert len(batches) == len(sampler)
    assert all(2 <= len(batch) <= batch_size for batch in batches)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    pairs = [pair for batch in batches for pair in batch]
    with_captions = [image for image, count in enumerate(counts) if count]
    left_out = len(with_captions) % batch_size == 1
    assert len(pairs) == len(with_captions) - left_out
    assert len({image for image, _ in pairs}) == len(pairs)
    assert {image for image, _ in pairs} <= set(with_captions)
    assert all(images[caption] == image for image, caption in pairs)


@given(CAPTIONS_PER_IMAGE, st.integers(2, 5))
def test_all_captions_visits_every_caption_once(counts, batch_size):
    images = caption_image(counts)
    batches = drawn(PairSampler(images, batch_size=batch_size, seed=0, all_captions=True), 3)
    pairs = [pair for batch in batches for pair in batch]
    assert len(pairs) == len(images) - (len(images) % batch_size == 1)
    assert len({caption for _, caption in pairs}) == len(pairs)
    assert all(images[caption] == image for image, caption in pairs)


def test_the_draw_depends_on_seed_and_epoch_alone():
    images = caption_image([3] * 20)
    one, other = (PairSampler(images, batch_size=8, seed=5) for _ in range(2))
    drawn(one, 0)
    torch.rand(100)
    assert drawn(one, 7) == drawn(other, 7)
    assert drawn(one, 7) != drawn(one, 8)
    assert drawn(one, 7) != drawn(PairSampler(images, batch_size=8, seed=6), 7)


def test_every_caption_gets_its_turn():
    sampler = PairSampler(caption_image([3, 1, 2]), batch_size=3, seed=0)
    seen = {caption for epoch in range(40) for batch in drawn(sampler, epoch) for _, caption in batch}
    assert seen == set(range(6))


def test_only_chosen_captions_are_drawn():
    images = torch.tensor([2, 0, 1, 2, 0])  # captions of one image need not stand together
    sampler = PairSampler(images, caption_rows=torch.tensor([3, 4]), batch_size=2, seed=0)
    for epoch in range(5):
        assert {pair for batch in drawn(sampler, epoch) for pair in batch} == {(2, 3), (0, 4)}


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        PairSampler(caption_image([1, 1]), batch_size=1, seed=0)
    with pytest.raises(DataError, match="at least 2 image-caption pairs"):
        PairSampler(caption_image([4]), batch_size=2, seed=0)
    with pytest.raises(DataError, match="got 0"):
        PairSampler(caption_image([1, 1]), caption_rows=torch.tensor([], dtype=torch.long), batch_size=2, seed=0)


def test_the_loader_gives_what_the_dataset_makes_of_the_rows():
    class Doubled:
        def __getitem__(self, rows: PairRows) -> torch.Tensor:
            return torch.stack([rows.images * 2, rows.captions * 2])

    sampler = PairSampler(caption_image([1, 2, 1, 1]), batch_size=3, seed=0)
    state = torch.get_rng_state()
    (batch,) = pair_loader(Doubled(), sampler)
    assert torch.equal(torch.get_rng_state(), state)
    (rows,) = sampler
    assert batch.tolist() == [(rows.images * 2).tolist(), (rows.captions * 2).tolist()]


def test_seed_epoch_decides_the_global_random_numbers():
    def draws(seed: int, epoch: int) -> list[float]:
        seed_epoch(seed, epoch)
        return torch.rand(4).tolist()

    with torch.random.fork_rng():
        assert draws(1, 2) == draws(1, 2)
        assert draws(1, 2) != draws(2, 1)


def copies_drawn(sampler: PairSampler, epoch: int) -> list[int]:
    """The copy of each image, in the images' order."""
    sampler.set_epoch(epoch)
    batches = list(sampler)
    images, copies = (torch.cat([rows[field] for rows in batches]) for field in (0, 2))
    return copies[images.argsort()].tolist()


@pytest.mark.parametrize("probability", [0.25, 0.75, 1.0])
def test_copies_are_drawn_evenly_with_the_given_probability(probability):
    sampler = PairSampler(caption_image([1] * 500), batch_size=64, seed=3, copies=3, augment_probability=probability)
    drawn_copies = torch.tensor([copies_drawn(sampler, epoch) for epoch in range(12)])
    assert set(drawn_copies.unique().tolist()) <= {-1, 0, 1, 2}
    assert (drawn_copies >= 0).double().mean().item() == pytest.approx(probability, abs=0.02)
    for copy in range(3):
        assert (drawn_copies == copy).double().mean().item() == pytest.approx(probability / 3, abs=0.02)
    assert not torch.equal(drawn_copies[0], drawn_copies[1])
    # Which copy is drawn has nothing to do with which image it is.
    assert drawn_copies.double().mean(dim=0).std() < 0.5


def test_copies_depend_on_seed_and_epoch_alone_and_change_no_pair():
    images = caption_image([3] * 40)
    options = {"batch_size": 8, "copies": 2, "augment_probability": 0.5}
    one, other = (PairSampler(images, seed=5, **options) for _ in range(2))
    copies_drawn(one, 0)
    assert copies_drawn(one, 7) == copies_drawn(other, 7)
    assert copies_drawn(one, 7) != copies_drawn(PairSampler(images, seed=6, **options), 7)
    assert drawn(one, 7) == drawn(PairSampler(images, batch_size=8, seed=5), 7)


@pytest.mark.parametrize(("copies", "probability"), [(0, 0.75), (3, 0.0)])
def test_without_copies_or_chance_none_are_drawn(copies, probability):
    sampler = PairSampler(caption_image([1] * 9), batch_size=4, seed=0, copies=copies, augment_probability=probability)
    assert all(rows.copies is None for rows in sampler)


@given(
    counts=st.lists(st.integers(0, 6), min_size=2, max_size=9).filter(lambda counts: sum(map(bool, counts)) > 1),
    captions_per_image=st.integers(2, 5),
    images_a_batch=st.integers(2, 4),
    epoch=st.integers(0, 3),
)
def test_several_captions_of_an_image_stand_side_by_side(counts, captions_per_image, images_a_batch, epoch):
    caption_image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    caption_image = caption_image[torch.randperm(len(caption_image), generator=torch.Generator().manual_seed(0))]
    sampler = PairSampler(
        caption_image,
        batch_size=images_a_batch * captions_per_image,
        seed=3,
        captions_per_image=captions_per_image,
        copies=4,
        augment_probability=0.5,
    )
    sampler.set_epoch(epoch)
    seen: dict[int, list[int]] = {}
    for pairs in sampler:
        assert pairs.images.tolist() == caption_image[pairs.captions].tolist()
        runs = pairs.images.unique_consecutive().tolist()
        assert len(runs) == len(set(runs)) <= images_a_batch
        assert pairs.copies is not None
        for image in runs:
            assert image not in seen
            own = pairs.images == image
            seen[image] = pairs.captions[own].tolist()
            assert len(pairs.copies[own].unique()) == 1
    left_out = sum(map(bool, counts)) - len(seen)
    assert left_out == (1 if sum(map(bool, counts)) % images_a_batch == 1 else 0)
    for image, captions in seen.items():
        assert len(set(captions)) == len(captions) == min(counts[image], captions_per_image)
    assert sampler.pairs == sum(min(count, captions_per_image) for count in counts)


def test_every_subset_of_captions_gets_its_turn():
    sampler = PairSampler(torch.tensor([0, 0, 0, 1]), batch_size=4, seed=0, captions_per_image=2)
    drawn = set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        (pairs,) = sampler
        drawn.add(frozenset(pairs.captions[pairs.images == 0].tolist()))
    assert drawn == {frozenset(two) for two in ((0, 1), (0, 2), (1, 2))}


def test_captions_per_image_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="at least twice captions_per_image, got 7 and 4"):
        PairSampler(torch.arange(9), batch_size=7, seed=0, captions_per_image=4)
    with pytest.raises(ConfigError, match="leave out captions_per_image, or it"):
        PairSampler(torch.arange(9), batch_size=8, seed=0, captions_per_image=2, all_captions=True)


def test_a_batch_that_leaves_a_process_without_work_is_refused():
    with pytest.raises(ConfigError, match="batch_size must be at least 16, an image with its captions for"):
        PairSampler(torch.arange(9), batch_size=8, seed=0, captions_per_image=4, smallest=4)
    with pytest.raises(DataError, match="at least 8 images or pairs for a batch, got 5"):
        PairSampler(torch.arange(5), batch_size=8, seed=0, smallest=8)
