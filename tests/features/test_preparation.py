"""Worker processes instead of threads: the same store, and clear errors where one dies."""

import multiprocessing
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor
from troubled_captions import TroubledCaptions, kill, lack_memory

from modalloy.encoders.base import Encoded, Modality
from modalloy.errors import FeatureError
from modalloy.features import extract
from modalloy.features.preparation import explained_death

SMALL = {"batch_size": 2, "shard_size": 12, "workers": 2, "progress": False}


@pytest.mark.parametrize("modality", ["image", "text"])
def test_processes_make_the_same_bytes_as_threads(encoder, make_collection, tmp_path, files_in, modality) -> None:
    # More rows than the processes take at a time, and some of them rejected.
    collection = make_collection(30, corrupt=[4, 17], captions=("one", "refused", "crash now", "a longer one"))
    state = torch.get_rng_state()
    threads = extract(encoder, modality, collection, tmp_path / "threads", **SMALL)
    processes = extract(encoder, modality, collection, tmp_path / "processes", **SMALL, processes=True)
    assert processes.rejects()
    assert files_in(processes.folder) == files_in(threads.folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_killed_process_is_named_and_the_next_run_goes_on(encoder, make_collection, tmp_path, files_in) -> None:
    collection, folder = make_collection(20), tmp_path / "features"
    troubled = TroubledCaptions(collection, 30, tmp_path / "killed", kill)
    with pytest.raises(FeatureError, match=r"process that decodes was killed.*goes on where it stopped"):
        extract(encoder, "text", collection, folder, **SMALL, processes=True, source=troubled)
    assert (tmp_path / "killed").exists() and not (folder / "manifest.json").exists()
    store = extract(encoder, "text", collection, folder, **SMALL, processes=True, source=troubled)
    assert files_in(folder) == files_in(extract(encoder, "text", collection, tmp_path / "whole", **SMALL).folder)
    assert store.rejects() == []


def test_lack_of_memory_in_a_process_is_nobodys_rejection(encoder, make_collection, tmp_path) -> None:
    collection = make_collection(4)
    troubled = TroubledCaptions(collection, 3, tmp_path / "never", lack_memory)
    with pytest.raises(MemoryError):
        extract(encoder, "text", collection, tmp_path / "features", **SMALL, processes=True, source=troubled)


def test_an_encoder_that_fails_on_all_rows_is_a_bug_in_processes_too(make_encoder, make_collection, tmp_path) -> None:
    class Buggy(make_encoder):
        def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
            raise TypeError("no such argument")

    with pytest.raises(FeatureError, match=r"failed on all 2 items of a batch.*no such argument"):
        extract(Buggy(), "image", make_collection(4), tmp_path / "features", **SMALL, processes=True)


def test_rows_in_processes_do_not_grow_with_the_collection(make_encoder, make_collection, tmp_path) -> None:
    begun = multiprocessing.Value("l", 0)

    class Watched(make_encoder):
        taken = most = 0

        def preprocess(self, modality: Modality, item: Image.Image | str) -> Tensor:
            with begun.get_lock():
                begun.value += 1
            return super().preprocess(modality, item)

        def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
            self.most = max(self.most, begun.value - self.taken)
            self.taken += len(prepared)
            return super().forward(modality, prepared)

    encoder = Watched()
    collection = make_collection(200, captions=("one", "two", "three"))
    extract(encoder, "text", collection, tmp_path / "features", batch_size=4, workers=2, progress=False, processes=True)
    assert begun.value == 600
    # Two chunks of eight for each of two workers, what is left of one, and the batch.
    assert encoder.most <= 2 * 2 * 8 + 8 + 4


def test_a_death_is_explained_whatever_it_interrupted() -> None:
    """Torch's signal handler raises wherever the main thread is, and what it interrupts may wrap its error."""
    killed = r"A process that decodes was killed \(DataLoader worker \(pid 7\)"
    with pytest.raises(FeatureError, match=killed), explained_death():
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        except RuntimeError:
            raise TypeError("not a tensor") from None
    with pytest.raises(TypeError, match="not a tensor"), explained_death():
        raise TypeError("not a tensor")
