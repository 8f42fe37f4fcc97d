"""HACAN's local score of pictures as they come, against the branch's scores of one pair at a time."""

import pytest
import torch
from align.test_encoder_local import CONFIG, SPECS, WIDTHS, made
from index.memory_index import MemoryIndex
from PIL import Image
from search.indexes import rows_of

from modalloy.align import LocalConfig
from modalloy.align.cross_layer import CROSS, FOCAL, cross_layer_similarity
from modalloy.align.words import joined_words
from modalloy.data import open_image
from modalloy.encoders import load_encoder
from modalloy.errors import ConfigError, ImageError
from modalloy.files import sha256_of
from modalloy.fusion import Alloy, InputShape, ScoreFusion
from modalloy.index import Head, Source
from modalloy.search import HierarchyConfig, LocalScores, Part, Query, Searcher
from modalloy.search.rerank import Picture
from modalloy.search.words import find_words, words_finder

TEXTS = ["a red telephone", "dogs"]
FOCAL_ONLY = LocalConfig(WIDTHS[0], None, WIDTHS[2], None, dim=8)


@pytest.fixture(scope="module")
def models():
    return {modality: load_encoder(spec) for modality, spec in SPECS.items()}


@pytest.fixture(scope="module")
def encoder(models, tmp_path_factory):
    encoder = made(models, local=CONFIG)
    encoder.save(tmp_path_factory.mktemp("local"))
    return encoder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    noise = torch.randint(256, (3, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, each in enumerate(noise):
        Image.fromarray(each.numpy()).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(3)]


class Opened:
    """Pictures that count how often they are opened; one may be lost."""

    def __init__(self, files, lost: int | None = None, known: bool = True) -> None:
        self.count, self.lost = 0, lost
        self.pictures = [
            Picture(lambda number=number, file=file: self.open(number, file), str(number) if known else None)
            for number, file in enumerate(files)
        ]

    def open(self, number, file):
        self.count += 1
        if number == self.lost:
            raise ImageError("lost")
        return open_image(file)


def one_pair(encoder, text, file, cross):
    """The local evidence of a pair by the branch itself."""
    levels = ("high", "mid") if cross else ("high",)
    sides = []
    for modality, item in (("image", open_image(file)), ("text", text)):
        made_of = {level: getattr(encoder.backbone(modality, level), f"encode_{modality}s")([item]) for level in levels}
        packed = {level: (each.tokens, each.lengths) for level, each in made_of.items()}
        sides.append(encoder.project_tokens(modality, packed))
    attention = encoder.local.config.attention
    focal = float(cross_layer_similarity(*sides, attention, FOCAL))
    return 0.8 * focal + (float(cross_layer_similarity(*sides, attention, CROSS)) if cross else 0.0)


def test_scores_are_those_of_one_pair_at_a_time(encoder, files):
    found = LocalScores(encoder)(TEXTS, Opened(files).pictures)
    expected = torch.tensor([[one_pair(encoder, text, file, True) for file in files] for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert LocalScores(encoder).global_weight == 0.2


def test_an_alloys_score_is_the_mean_of_its_inputs(models, encoder, files, tmp_path):
    plain, focal = made(models, mid=False), made(models, seed=1, local=FOCAL_ONLY, mid=False)
    inputs = [encoder, plain, focal]
    shapes = [InputShape(each.dim("image"), each.width("image"), each.width("text")) for each in inputs]
    alloy = Alloy(inputs, ScoreFusion([1.0, 1.0, 1.0], shapes))
    found = LocalScores(alloy)(TEXTS[:1], Opened(files).pictures)[0]
    # One of them has no earlier level, so that no stage reads one.
    expected = [sum(one_pair(each, TEXTS[0], file, False) for each in (encoder, focal)) / 2 for file in files]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-3, rtol=0)


def test_tokens_are_made_once_and_kept_while_there_is_room(encoder, files):
    stage, opened = LocalScores(encoder), Opened(files)
    first = stage(TEXTS, opened.pictures)
    assert opened.count == 3
    torch.testing.assert_close(stage(TEXTS, opened.pictures[::-1]), first.flip(1))
    assert opened.count == 3
    small = LocalScores(encoder, held_bytes=1)
    assert torch.equal(small(TEXTS, opened.pictures), first) and opened.count == 6
    assert torch.equal(small(TEXTS, opened.pictures), first) and opened.count == 9
    unknown = Opened(files, known=False)
    stage(TEXTS, unknown.pictures)
    stage(TEXTS, unknown.pictures)
    assert unknown.count == 6


def test_a_lost_picture_has_no_score_and_spoils_no_other(encoder, files):
    whole = LocalScores(encoder)(TEXTS, Opened(files).pictures)
    found = LocalScores(encoder)(TEXTS, Opened(files, lost=1).pictures)
    assert found[:, 1].isnan().all()
    torch.testing.assert_close(found[:, [0, 2]], whole[:, [0, 2]])
    assert LocalScores(encoder)(TEXTS, Opened(files[:1], lost=0).pictures).isnan().all()
    assert LocalScores(encoder)([], Opened(files).pictures).shape == (0, 3)
    assert LocalScores(encoder)(TEXTS, []).shape == (2, 0)


def test_an_encoder_without_a_local_branch_is_refused(models):
    with pytest.raises(ConfigError, match="no local branch to re-rank by"):
        LocalScores(made(models, mid=False))


def test_a_searcher_has_it_as_a_second_stage_and_finds_words(encoder, files):
    prints = {modality: encoder.fingerprint(modality) for modality in encoder.modalities}
    root = str(files[0].parent)
    index = MemoryIndex(Head(encoder.spec, prints, encoder.dim("image"), (Source("", root, None, root),)))
    vectors = encoder.encode_images(files).embedding
    shown = {file.name: {"source": "", "path": file.name, "sha256": sha256_of(file)} for file in files}
    index.commit(rows_of(dict(zip(shown, vectors, strict=True)), shown))
    searcher = Searcher(index, encoder)
    assert list(searcher.view.rerankers) == ["local"] and searcher.view.finds_words
    hits = searcher.search(Query((Part(text=TEXTS[0]),), rerank="local")).hits
    for hit in hits:
        expected = 0.2 * hit.score + one_pair(encoder, TEXTS[0], hit.path, True)
        assert hit.rerank_score == pytest.approx(expected, abs=2e-3)
    scores = [hit.rerank_score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    found = searcher.view.words("1.png", TEXTS[0])
    assert [each.word for each in found.words] == ["a", "red", "telephone"]
    assert torch.equal(found.words[1].weights, find_words(encoder, open_image(files[1]), TEXTS[0]).words[1].weights)


def test_words_are_found_by_the_branch_s_own_attention(models, files):
    encoder = made(models, local=FOCAL_ONLY, mid=False)
    text = "running telephones"
    found = find_words(encoder, open_image(files[0]), text)
    assert found.grid == encoder.token_grid() and found.encoder == encoder.name
    assert [each.word for each in found.words] == [word for word, _ in joined_words(encoder.token_texts(text))]
    for each in found.words:
        assert each.weights.shape == found.grid and float(each.weights.sum()) == pytest.approx(1.0, abs=1e-5)


def test_without_a_local_branch_no_words_are_found(models, files):
    encoder = made(models, mid=False)
    assert words_finder(encoder) is None
    with pytest.raises(ConfigError, match="no local branch that tells where"):
        find_words(encoder, open_image(files[0]), "a")


def test_the_weights_are_those_configured(encoder, files):
    config = HierarchyConfig(None, None, global_weight=0.7, focal_weight=0.8, cross_weight=1e-9)
    stage = LocalScores(encoder, config)
    found = stage(TEXTS[:1], Opened(files[:1]).pictures)
    assert stage.global_weight == 0.7 and float(found) == pytest.approx(
        one_pair(encoder, TEXTS[0], files[0], False), abs=2e-3
    )


def test_a_backbone_that_is_not_there_is_told_once_and_stops_nothing_else(encoder, files, monkeypatch, caplog):
    prints = {modality: encoder.fingerprint(modality) for modality in encoder.modalities}
    index = MemoryIndex(Head(encoder.spec, prints, encoder.dim("image")))
    index.commit(rows_of(dict(zip("abc", encoder.encode_images(files).embedding, strict=True))))

    def missing():
        raise ConfigError("no such package")

    monkeypatch.setattr(encoder, "token_grid", missing)
    view = Searcher(index, encoder).view
    assert not view.finds_words and "words can't be found in pictures: no such package" in caplog.text
    query = Query((Part(like="a"),), k=2)
    assert len(view.answer(query, view.encode(query.parts)).hits) == 2
