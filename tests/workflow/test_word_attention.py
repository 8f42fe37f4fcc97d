"""Where a local branch finds a caption's words, against the stores and the attention by hand."""

import pytest
import torch

from modalloy import align_backbones
from modalloy.align import attention_maps
from modalloy.align.words import WordMap
from modalloy.errors import ConfigError
from modalloy.training.align_config import AlignConfig, LocalBranchConfig
from modalloy.workflow import report as gathering
from modalloy.workflow import word_attention
from modalloy.workflow.features import Collection
from modalloy.workflow.run import Run
from modalloy.workflow.word_attention import word_examples

TINY = AlignConfig(epochs=1, dim=8, batch_size=8, local=LocalBranchConfig(dim=8))


@pytest.fixture(scope="module")
def own(tiny_manifest, tmp_path_factory):
    return Collection(tiny_manifest, tmp_path_factory.mktemp("words") / "features")


@pytest.fixture(scope="module")
def aligned(own, tmp_path_factory):
    return align_backbones("efficientnet-lite0@64", "minilm", own, tmp_path_factory.mktemp("aligned"), TINY)


@pytest.fixture(scope="module")
def features(own, encoders, aligned):
    return own.paired([encoders[0], aligned]).split("test")


def first_captions(features):
    return [(image, int((features.caption_image == image).nonzero()[0])) for image in range(len(features.image_rows))]


def test_words_have_the_attention_and_the_score_of_their_pieces(own, encoders, aligned, features):
    pairs = first_captions(features)
    examples = word_examples({"plain": encoders[0], "local": aligned}, features, pairs)
    assert len(examples) == len(pairs)
    joined = 0
    for (image, caption), example in zip(pairs, examples, strict=True):
        rows = {"image": features.image_rows[[image]], "text": features.caption_rows[[caption]]}
        assert example.caption == own.manifest.captions[int(rows["text"])]
        assert example.caption in own.manifest[int(rows["image"])].captions
        tokens = {
            side: aligned.project_tokens(side, {"high": own.store(aligned.backbone(side), side).tokens(rows[side])})[
                "high"
            ]
            for side in rows
        }
        maps = attention_maps(tokens["image"], tokens["text"], aligned.local.config.attention)
        pieces = aligned.token_texts(example.caption)
        (name,) = example.maps
        assert name == "local" and example.maps[name]
        for found in example.maps[name]:
            places = places_of(found.word, pieces)
            joined += len(places) > 1
            assert found.weights.shape == aligned.token_grid()
            torch.testing.assert_close(found.weights.flatten(), maps.weights[0, places].mean(0))
            assert found.score == pytest.approx(float(maps.words[0, places].mean()), abs=1e-5)
    assert joined


def places_of(word, pieces):
    """Where a word's pieces stand, the first time that they spell it."""
    for first in range(len(pieces)):
        for last in range(first, len(pieces)):
            if "".join(pieces[first : last + 1]).replace("##", "") == word:
                return list(range(first, last + 1))
    raise AssertionError(word)


def test_the_strongest_words_are_shown_once_in_reading_order(monkeypatch):
    monkeypatch.setattr(word_attention, "_MOST_WORDS", 3)
    scores = {"The": 0.9, "dog": 0.2, "sees": 0.5, "Dog": 0.6, "on": 0.8, "red": 0.1, "grass": 0.4}
    words = [WordMap(word, torch.ones(2, 2), score) for word, score in scores.items()]
    assert [each.word for each in word_attention._shown(words)] == ["sees", "Dog", "grass"]
    assert word_attention._shown([]) == []


def test_what_has_no_grid_or_no_words_is_left_out(aligned, encoders, features, monkeypatch):
    both, pairs = {"plain": encoders[0], "local": aligned}, [(0, int((features.caption_image == 0).nonzero()[0]))]
    for method in ("token_grid", "token_texts"):
        with monkeypatch.context() as patched:
            patched.setattr(type(aligned), method, lambda *_: None)
            assert word_examples(both, features, pairs) == []
    assert word_examples(both, features, []) == []


def test_a_backbone_that_cannot_be_loaded_is_told(aligned, encoders, features, monkeypatch, caplog):
    def missing():
        raise ConfigError("the package isn't installed")

    monkeypatch.setattr(aligned, "token_grid", missing)
    assert word_examples({"plain": encoders[0], "local": aligned}, features, first_captions(features)) == []
    assert "doesn't show the words of local: the package isn't installed" in caplog.text


def test_a_run_shows_the_words_of_inputs_with_a_local_branch(finished_run, encoders, aligned, features):
    run = Run.open(finished_run)
    vars(run).update(encoders=[encoders[0], encoders[0]], test=features)
    assert gathering._words(run) == []
    vars(run).update(encoders=[encoders[0], aligned])
    found = gathering._words(run)
    assert len(found) == 6 and all(list(each.maps) == [run.config.inputs[1].name] for each in found)


@pytest.mark.slow
def test_the_section_is_there_only_with_a_local_branch(run_copy, aligned, features, monkeypatch):
    assert 'id="words"' not in (run_copy / "report.html").read_text()
    run = Run.open(run_copy)
    encoders = {"plain": run.encoders[0], "local": aligned}
    monkeypatch.setattr(gathering, "word_examples", lambda _, __, pairs: word_examples(encoders, features, pairs))
    run.write_report()
    page = (run_copy / "report.html").read_text()
    assert 'id="words"' in page and page.count('<article class="words-found">') == 6
