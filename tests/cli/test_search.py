import json
import sys

import pytest
from PIL import Image

from modalloy.cli.main import USER_MISTAKE, main
from modalloy.search import Answer, Hit, Searcher


def answer(capsys, *arguments):
    assert main(["search", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def mistake(capsys, *arguments):
    assert main(["search", *map(str, arguments)]) == USER_MISTAKE
    out, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert out == "" and line.startswith("modalloy search: ")
    return line


@pytest.fixture
def picture(tiny_manifest):
    return tiny_manifest.absolute(tiny_manifest[0])


def test_pictures_by_words(capsys, finished_run, tiny_manifest):
    found = answer(capsys, finished_run, "a red telephone", "-k", 3)
    assert found["query"] == "a red telephone" and len(found["hits"]) == 3
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)
    by_id = {item.id: item for item in tiny_manifest}
    for hit in found["hits"]:
        item = by_id[hit["id"]]
        assert hit["path"] == str(tiny_manifest.absolute(item)) and hit["caption"] == item.captions[0]


def test_captions_by_a_picture(capsys, finished_run, picture, tiny_manifest):
    hits = answer(capsys, finished_run, "--image", picture, "--target", "text", "-k", 4)["hits"]
    assert len(hits) == 4 and all(hit["id"] in tiny_manifest.caption_ids for hit in hits)
    captions = dict(zip(tiny_manifest.caption_ids, tiny_manifest.captions, strict=True))
    assert all(hit["caption"] == captions[hit["id"]] for hit in hits)


def test_a_picture_finds_itself(capsys, finished_run, picture, tiny_manifest):
    found = answer(capsys, finished_run, "--image", picture)
    assert found["query"] == str(picture) and len(found["hits"]) == 5
    assert found["hits"][0]["id"] == tiny_manifest[0].id
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-3)


def test_captions_by_words(capsys, finished_run, tiny_manifest):
    (hit,) = answer(capsys, finished_run, tiny_manifest.captions[0], "--target", "text", "-k", 1)["hits"]
    assert hit["caption"] == tiny_manifest.captions[0] and hit["score"] == pytest.approx(1, abs=1e-3)


def test_people_get_a_table(capsys, finished_run, monkeypatch):
    hits = Hit("a", 0.5, path="/pictures/cat.jpg", captions=("a cat [bold]with[/x] markup",)), Hit("b", 0.25)
    monkeypatch.setattr(Searcher, "search", lambda *_: Answer(hits, 2, 1, {}))
    assert main(["search", str(finished_run), "[/b] cats"]) == 0
    out = capsys.readouterr().out
    assert all(shown in out for shown in ("a cat [bold]with[/x] markup", "[/b] cats", "0.500", "/pictures/cat.jpg"))
    monkeypatch.setattr(Searcher, "search", lambda *_: Answer((), 0, 1, {}))
    assert main(["search", str(finished_run), "cats"]) == 0
    assert "nothing found; 0 satisfy the conditions" in capsys.readouterr().out


def test_explanations(capsys, finished_run, tiny_manifest):
    words = ["a red telephone", "--without", "[b]a cat", "--like", tiny_manifest[0].id, "--weight", "1", "0.5", "0.2"]
    found = answer(capsys, finished_run, *words, "--explain")
    assert found["query"] == f"+1 a red telephone, +0.5 like {tiny_manifest[0].id}, -0.2 [b]a cat"
    for hit in found["hits"]:
        assert hit["id"] != tiny_manifest[0].id
        assert sum(hit["part_contributions"]) == pytest.approx(hit["score"], abs=1e-5)
        assert sum(hit["contributions"].values()) == pytest.approx(hit["score"], abs=1e-5)
    assert "fused" in found["hits"][0]["contributions"] and len(found["hits"][0]["contributions"]) == 2
    assert main(["search", str(finished_run), *words, "--explain"]) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in (" of fused", " by [b]a cat", "standard"))


def test_words_without_quotes_are_told_to_have_them(capsys, finished_run):
    assert "put the words in quotes: 'a red dog'" in mistake(capsys, finished_run, "a", "red", "dog", "-k", 3)
    assert "put the words in quotes: 'a red dog'" in mistake(capsys, "a", "red", "dog")


def test_a_word_taken_for_a_place_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog").mkdir()
    assert "'dog' was taken for the index's place" in mistake(capsys, "dog")


def test_what_is_unwanted_counts_half_unless_told_otherwise(capsys, finished_run):
    assert answer(capsys, finished_run, "a dog", "--without", "a cat")["query"] == "+1 a dog, -0.5 a cat"


def test_one_input_can_be_ranked_by_alone(capsys, finished_run):
    explained = answer(capsys, finished_run, "a red telephone", "--explain")
    (name,) = set(explained["hits"][0]["contributions"]) - {"fused"}
    found = answer(capsys, finished_run, "a red telephone", "--by", name, "-k", 3)
    assert len(found["hits"]) == 3
    assert "can't rank by 'clip': the vectors hold 'fused'" in mistake(capsys, finished_run, "a dog", "--by", "clip")


def test_conditions_hold(capsys, finished_run, tiny_manifest):
    found = answer(capsys, finished_run, "a cat", "--where", "split = test", "-k", 99)
    assert {hit["id"] for hit in found["hits"]} <= set(tiny_manifest.split("test").image_ids)
    assert found["searched"] == len(found["hits"])
    assert "has no field 'year'" in mistake(capsys, finished_run, "a cat", "--where", "year > 2020")


def test_a_terminal_shows_what_is_waited_for_on_stderr(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["search", "words", "--json"]) == USER_MISTAKE
    out, err = capsys.readouterr()
    assert out == "" and "searching index; its encoder is loaded first" in err


def test_without_a_place_the_folder_named_index_is_searched(capsys, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "index holds no index" in mistake(capsys, "words")
    monkeypatch.chdir(finished_run)
    assert len(answer(capsys, "a red telephone")["hits"]) == 5
    assert "give what to search by" in mistake(capsys, "--without", "a cat")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["words", "-k", "0"], "k must be at least 1, got 0"),
        ([""], "at least one visible character"),
        (["  "], "at least one visible character"),
        ([], "give what to search by: words, --image or --like"),
        (["--without", "a cat"], "give what to search by: words, --image or --like"),
        (["words", "--weight", "1", "2"], "one number above 0 for each part of the question, here 1 part, got"),
        (["words", "--weight", "0"], "one number above 0 for each part of the question, here 1 part, got"),
        (["words", "--like", "nothing"], "no picture or caption 'nothing'"),
        (["words", "--rerank", "local"], "no second stage 'local' here, only none"),
        (["words", "--rerank", "itm"], "--itm FOLDER"),
        (["--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_mistakes_in_the_query(capsys, finished_run, arguments, said):
    assert said in mistake(capsys, finished_run, *arguments)


def test_an_unreadable_picture_is_named(capsys, finished_run, picture, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert "bad.png" in mistake(capsys, finished_run, "--image", tmp_path / "bad.png")
    Image.open(picture).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-200])
    assert "cut.png" in mistake(capsys, finished_run, "--image", tmp_path / "cut.png")


def test_a_missing_run_is_named(capsys, tmp_path, finished_run):
    assert f"{tmp_path / 'nowhere'} holds no index" in mistake(capsys, tmp_path / "nowhere", "words")
    assert "holds no index" in mistake(capsys, finished_run / "inputs" / "1", "words")
    (tmp_path / "before" / "gallery").mkdir(parents=True)
    assert "run the same command again" in mistake(capsys, tmp_path / "before", "words")


def test_another_models_weights_are_refused(capsys, run_copy):
    weights = run_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert "model.safetensors" in mistake(capsys, run_copy, "words")


def test_a_checkpoint_that_is_not_ours_is_refused(capsys, run_copy):
    (run_copy / "config.json").write_text('{"model_type": "clip"}')
    assert "config.json" in mistake(capsys, run_copy, "words")
