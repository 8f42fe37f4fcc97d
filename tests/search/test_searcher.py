import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from index.memory_index import MemoryIndex
from PIL import Image
from search.indexes import coloured_index
from torch import Tensor

from modalloy.data import Manifest
from modalloy.encoders import Encoded, Encoder, Modality
from modalloy.errors import CheckpointError, ConfigError, DataError, ImageError
from modalloy.index import Condition
from modalloy.index.lance import LanceIndex
from modalloy.search import Part, Query, Searcher
from modalloy.search.searcher import find_index


@pytest.fixture
def index(encoder: Encoder, collection: Manifest) -> MemoryIndex:
    return coloured_index(encoder, collection)


@pytest.fixture
def searcher(index: MemoryIndex, encoder: Encoder) -> Searcher:
    return Searcher(index, encoder)


def test_text_to_image(searcher: Searcher, collection: Manifest) -> None:
    hits = searcher.by_text("something blue", k=2)
    assert [hit.id for hit in hits] == ["blue", "grey"]
    best = hits[0]
    assert best.score == pytest.approx(1.0) and best.path == str(collection.absolute(collection[2]))
    assert best.captions == collection[2].captions and best.caption == best.captions[0]
    assert (best.picture_id, best.width, best.height, best.metadata) == ("blue", 8, 8, {"letters": 4.0})
    assert best.rerank_score is best.contributions is best.part_contributions is None


def test_text_to_text(searcher: Searcher) -> None:
    hits = searcher.by_text("green", k=2, target="text")
    assert {hit.id for hit in hits} == {"green#0", "green#1"} and {hit.picture_id for hit in hits} == {"green"}


def test_image_to_text(searcher: Searcher, collection: Manifest) -> None:
    hits = searcher.by_image(collection.absolute(collection[0]), k=1, target="text")
    assert [(hit.id, hit.caption, hit.width) for hit in hits] == [("red#0", "a red square, 0", None)]


def test_image_to_image(searcher: Searcher) -> None:
    assert searcher.by_image(Image.new("RGB", (5, 9), (20, 200, 0)), k=1)[0].id == "green"


def test_standard_scores_are_those_of_the_whole_index(searcher: Searcher) -> None:
    hits = searcher.by_text("red", k=4)
    scores = torch.tensor([hit.score for hit in hits], dtype=torch.float64)
    expected = (scores - scores.mean()) / scores.std(unbiased=False)
    assert [hit.standard_score for hit in hits] == pytest.approx(expected.tolist(), abs=1e-5)


def test_text_and_picture_together(searcher: Searcher) -> None:
    yellow = Query((Part(text="red"), Part(image=Image.new("RGB", (2, 2), (0, 255, 0)))), k=3)
    assert {hit.id for hit in searcher.search(yellow).hits[:3]} == {"red", "green", "grey"}
    mostly_red = Query((Part(text="red", weight=3.0), Part(text="green")), k=1)
    assert searcher.search(mostly_red).hits[0].id == "red"


def test_what_is_pushed_away_comes_last(searcher: Searcher) -> None:
    found = searcher.search(Query((Part(text="grey"), Part(text="blue", weight=-2.0)), k=4)).hits
    assert found[-1].id == "blue"


def test_more_like_this_leaves_out_the_item_itself(searcher: Searcher) -> None:
    found = searcher.search(Query((Part(like="red"),), k=3)).hits
    assert "red" not in {hit.id for hit in found} and found[0].id == "grey" and len(found) == 3
    captions = searcher.search(Query((Part(like="blue#1"),), target="text", k=2)).hits
    assert {hit.id for hit in captions} == {"blue#0", "blue#2"}
    of_picture = searcher.search(Query((Part(like="blue"),), target="text", k=3)).hits
    assert {hit.picture_id for hit in of_picture} == {"blue"}


def test_an_item_that_is_not_there(searcher: Searcher) -> None:
    with pytest.raises(DataError, match="no picture or caption 'purple'"):
        searcher.search(Query((Part(like="purple"),)))


def test_conditions_hold_and_are_counted(searcher: Searcher) -> None:
    where = (Condition("letters", ">=", 4.0),)
    answer = searcher.search(Query((Part(text="red"),), where=where))
    assert answer.hits[0].id == "grey" and len(answer.hits) == answer.searched == 3
    assert searcher.search(Query((Part(text="red"),), target="text")).searched == 6
    with pytest.raises(ConfigError, match="no field 'year'"):
        searcher.search(Query((Part(text="red"),), where=(Condition("year", ">", 1.0),)))


def test_an_answer_says_where_it_comes_from(searcher: Searcher) -> None:
    answer = searcher.search(Query((Part(text="red"),)))
    assert answer.version == searcher.snapshot.version and {"encode", "search"} <= set(answer.milliseconds)


def test_an_index_without_captions_answers_with_none(encoder: Encoder, collection: Manifest) -> None:
    encoder.modalities = ("image",)
    searcher = Searcher(coloured_index(encoder, collection), encoder)
    picture = collection.absolute(collection[2])
    assert searcher.by_image(picture, k=1)[0].id == "blue" and searcher.by_image(picture, target="text") == []
    with pytest.raises(ConfigError, match="not text"):
        searcher.by_text("red")


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_a_blank_text_is_refused(searcher: Searcher, text: str) -> None:
    with pytest.raises(DataError, match="at least one visible character"):
        searcher.by_text(text)


def test_an_unreadable_query_picture_is_refused(searcher: Searcher, tmp_path: Path) -> None:
    (tmp_path / "query.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"query\.png"):
        searcher.by_image(tmp_path / "query.png")
    with pytest.raises(ImageError, match=r"absent\.png"):
        searcher.by_image(str(tmp_path / "absent.png"))


def test_one_vector_for_each_part(searcher: Searcher) -> None:
    parts = (Part(text="red"), Part(text="green"))
    with pytest.raises(DataError, match="2 parts needs as many vectors, got 1"):
        searcher.answer(Query(parts), searcher.encode(parts[:1]))


def test_parts_of_several_questions_are_encoded_together(searcher: Searcher) -> None:
    picture = Image.new("RGB", (2, 2), (0, 0, 255))
    parts = (Part(text="red"), Part(like="grey"), Part(image=picture), Part(text="green"))
    together = searcher.encode(parts)
    assert torch.equal(together, torch.cat([searcher.encode([part]) for part in parts]))
    answer = searcher.answer(Query(parts[2:3], k=1), together[2:3])
    assert answer.hits[0].id == "blue"
    assert searcher.encode([]).shape == (0, 3)


def test_other_weights_are_refused(index: MemoryIndex, encoder: Encoder) -> None:
    with pytest.raises(CheckpointError, match=r"made by colours, image .* make the index again"):
        Searcher(index, type(encoder)(weights="1"))


def test_an_encoder_whose_text_side_the_index_does_not_know_is_refused(index: MemoryIndex, encoder: Encoder) -> None:
    head = index.snapshot().head
    index.commit(head=replace(head, fingerprints={"image": head.fingerprints["image"]}))
    with pytest.raises(CheckpointError, match="made by another encoder"):
        Searcher(index, encoder)


def test_an_unknown_encoder_is_named(index: MemoryIndex) -> None:
    with pytest.raises(ConfigError, match="Unknown encoder 'colours'"):
        Searcher(index)


class TestRefresh:
    def test_a_newer_state_is_taken_and_a_view_keeps_its_own(self, searcher: Searcher, index: MemoryIndex) -> None:
        view, query = searcher.view, Query((Part(text="red"),), k=1)
        index.commit(removed=["red"])
        assert searcher.search(query).hits[0].id == "red"
        assert searcher.refresh() and not searcher.refresh()
        answer = searcher.search(query)
        assert answer.hits[0].id == "grey" and answer.version == searcher.snapshot.version == view.snapshot.version + 1
        assert view.answer(query, view.encode(query.parts)).hits[0].id == "red"
        assert searcher.view.sampled == ("image",)

    def test_another_encoders_index_is_refused_where_one_was_given(
        self, searcher: Searcher, index: MemoryIndex, encoder: Encoder
    ) -> None:
        other, before = type(encoder)(weights="1"), searcher.view
        prints = {modality: other.fingerprint(modality) for modality in other.modalities}
        index.commit(head=replace(index.snapshot().head, fingerprints=prints, generation=1))
        with pytest.raises(CheckpointError, match="made by colours"):
            searcher.refresh()
        assert searcher.view is before and searcher.by_text("red", k=1)[0].id == "red"

    def test_another_encoder_is_loaded_where_the_index_names_it(
        self, index: MemoryIndex, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = type(encoder)(weights="1")
        known = {"colours": encoder, "others": other}
        monkeypatch.setattr("modalloy.search.searcher.load_encoder", known.__getitem__)
        searcher = Searcher(index)
        prints = {modality: other.fingerprint(modality) for modality in other.modalities}
        index.commit(head=replace(index.snapshot().head, spec="others", fingerprints=prints, generation=1))
        assert searcher.refresh() and searcher.encoder is other

    def test_many_threads_see_whole_states(self, searcher: Searcher, index: MemoryIndex, collection: Manifest) -> None:
        rows = index.snapshot().rows(["red"], index.snapshot()._schema.names)
        query, wrong, stop = Query((Part(text="red"),), k=1), [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answer = searcher.search(query)
                # The picture is there in the even versions alone.
                if (answer.hits[0].id == "red") != (answer.version % 2 == 1):
                    wrong.append(answer)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            index.commit(removed=["red"])
            searcher.refresh()
            index.commit(rows)
            searcher.refresh()
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_questions_during_upgrades_never_meet_another_encoders_vectors(
        self, tmp_path: Path, encoder: Encoder, collection: Manifest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Turned(type(encoder)):  # type: ignore[misc]
            """What it calls red, the other one calls green."""

            spec = "turned"

            def forward(self, modality: Modality, prepared: Sequence[Tensor]) -> Encoded:
                encoded = super().forward(modality, prepared)
                return Encoded(encoded.embedding.roll(1, 1), encoded.tokens, encoded.lengths)

        known = {"colours": encoder, "turned": Turned(weights="1")}
        states = {name: coloured_index(each, collection).snapshot() for name, each in known.items()}
        rows = {name: pa.Table.from_batches(each.scan(each._schema.names)) for name, each in states.items()}
        monkeypatch.setattr("modalloy.search.searcher.load_encoder", known.__getitem__)
        index = LanceIndex.create(tmp_path / "index", states["colours"].head)
        index.commit(rows["colours"])
        searcher, wrong, stop = Searcher(index), [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answer = searcher.search(Query((Part(text="red"),), k=1))
                if answer.hits[0].id != "red" or answer.hits[0].score < 0.99:
                    wrong.append(answer)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for name in ("turned", "colours", "turned"):
            index = index.begin(states[name].head)
            index.commit(rows[name])
            index.switch()
            assert searcher.refresh() and searcher.encoder is known[name]
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong


class TestFindIndex:
    def test_that_of_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "run" / "index").mkdir(parents=True)
        assert find_index(tmp_path / "run") == str(tmp_path / "run" / "index")
        assert find_index(tmp_path / "run" / "index") == str(tmp_path / "run" / "index")

    def test_a_uri_stays(self) -> None:
        assert find_index("s3://bucket/index") == "s3://bucket/index"

    def test_a_run_of_before_is_told_what_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "gallery").mkdir()
        for location in (tmp_path, tmp_path / "gallery"):
            with pytest.raises(CheckpointError, match="run the same command again"):
                find_index(location)
