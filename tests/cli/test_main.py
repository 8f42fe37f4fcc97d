"""What all verbs have in common."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import Namespace

from modalloy.__main__ import main as run_program
from modalloy.cli.main import INTERRUPTED, USER_MISTAKE, VERBS, main
from modalloy.cli.verb import VerbGroup, _features_folder
from modalloy.errors import ConfigError


def mistake(capsys, *arguments: object) -> str:
    """The one line on stderr of a command that must end as a user's mistake."""
    assert main([str(each) for each in arguments]) == USER_MISTAKE
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith(f"modalloy {arguments[0]}: ")
    return line


# Each verb, after the words that stand before its options.
WORDS = {
    (*group, verb.name): verb
    for each in VERBS
    for group, verbs in [((each.name,), each.verbs) if isinstance(each, VerbGroup) else ((), [each])]
    for verb in verbs
}


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help_shows_an_example_and_the_common_options(words, capsys):
    verb = WORDS[words]
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: {verb.example}" in text
    assert "--json" in text and "--threads" in text
    # Neither a class nor a function of ours is a type that a user knows.
    assert "<function" not in text and "<class" not in text


@pytest.mark.parametrize("verb", WORDS.values(), ids=map(" ".join, WORDS))
def test_the_example_is_a_command_that_parses(verb, monkeypatch, capsys):
    monkeypatch.setattr(type(verb), "execute", lambda *_: {})
    monkeypatch.setattr(type(verb), "show", lambda *_: print("shown"))
    monkeypatch.setattr(type(verb), "exit_code", lambda *_: 0)
    program, *arguments = shlex.split(verb.example)
    assert program == "modalloy" and main(arguments) == 0
    assert capsys.readouterr().out in ("shown\n", "{}\n")


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help_spells_options_with_dashes(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    # Those with a "." are keys of a configuration.
    assert not re.search(r"--[a-z]+_", capsys.readouterr().out)


@pytest.mark.parametrize("spelling", ["--allow-removals", "--allow_removals"])
@pytest.mark.parametrize("sign", "-_")
def test_an_option_may_be_spelled_with_either_sign(spelling, sign, monkeypatch, capsys):
    seen: list[Namespace] = []
    monkeypatch.setattr("modalloy.cli.index.update.Update.execute", lambda _, options: seen.append(options) or {})
    monkeypatch.setattr("modalloy.cli.index.update.Update.exit_code", lambda *_: 0)
    assert main(["index", "update", "--json", spelling, f"--batch{sign}size", "3"]) == 0
    assert (seen[0].allow_removals, seen[0].batch_size) == (True, 3)


@pytest.mark.parametrize("spelling", ["--api-key-file", "--api_key_file", "--api-key_file", "--api_key-file"])
def test_an_options_signs_may_be_mixed(spelling, monkeypatch):
    seen: list[Namespace] = []
    monkeypatch.setattr("modalloy.cli.serve.Serve.execute", lambda _, options: seen.append(options) or {})
    assert main(["serve", "--json", spelling, "x"]) == 0
    assert str(seen[0].api_key_file) == "x"


def test_help_of_remove_requires_no_ids(capsys):
    with pytest.raises(SystemExit):
        main(["index", "remove", "--help"])
    text = capsys.readouterr().out
    assert "[ids ...]" in text and "required" not in text


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for verb in VERBS:
        assert verb.summary in text


def test_help_of_a_group_lists_its_verbs(capsys):
    with pytest.raises(SystemExit):
        main(["index", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words, verb in WORDS.items():
        assert (verb.summary in text) == (words[0] == "index")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "nope"),
        ([], "modalloy: name a verb: demo, run, "),
        (["index"], "modalloy index: name a verb: "),
        (["doctor"], "modalloy doctor: missing PATH (see modalloy doctor --help)"),
        (["extract"], "modalloy extract: missing ENCODERS, --collection (see modalloy extract --help)"),
        (["doctor", "demo", "--threads", "x"], "modalloy doctor: --threads must be a whole number, got 'x'"),
        (
            ["extract", "a", "--collection", "demo", "--extraction.augmentation", "3"],
            "--extraction.augmentation takes no value itself, but has options: --extraction.augmentation.operations, ",
        ),
        (["doctor", "demo", "--bogus"], "bogus"),
        (["search", "run", "words", "-k", "many"], "-k must be a whole number, got 'many'"),
        (["search", "run", "words", "--target", "sound"], "--target must be one of image, text, got 'sound'"),
        (
            ["align", "a", "b", "--collection", "demo", "--out", "x", "--align.epochs", "few"],
            "--align.epochs must be a whole number",
        ),
        (
            ["align", "a", "b", "--collection", "demo", "--out", "x", "--align.local.direction", "both"],
            "--align.local.direction must be one of t2i, i2t, got 'both'",
        ),
        (
            ["align", "a", "b", "--collection", "demo", "--out", "x", "--align.local", "true"],
            "--align.local takes no value itself, but has options: --align.local.dim, ",
        ),
        # Abbreviations would change their meaning with each new option.
        (["doctor", "demo", "--thr", "1"], "modalloy doctor: there is no option --thr"),
        (["serach", "a"], "modalloy: there is no verb 'serach'; did you mean search? (there are demo, run, "),
        (["index", "biuld"], "modalloy index: there is no verb 'biuld'; did you mean build? (there are build, add, "),
        (["index", "xyz"], "modalloy index: there is no verb 'xyz' (there are build, "),
        (
            ["index", "export", "fais", "x"],
            "no kind 'fais'; did you mean faiss? (there are npy-parquet, faiss)",
        ),
        (["search", "a", "b", "c", "--explian=3"], "there is no option --explian; did you mean --explain? (see"),
        (
            ["serve", "--allow_orgin", "x"],
            "there is no option --allow_orgin; did you mean --allow-origin? (see",
        ),
        (["index", "export", "it's", "x"], 'there is no kind "it\'s" (there are npy-parquet, faiss)'),
        (["index", "export", "fai's", "x"], 'there is no kind "fai\'s"; did you mean faiss? (there are '),
        (
            ["run", "x.yaml", "--first-stage.epochs", "3"],
            "; a key of the configuration is set with --set first_stage.epochs=VALUE (see modalloy run --help)",
        ),
        (["run", "x.yaml", "--thread", "3"], "there is no option --thread; did you mean --threads? (see"),
        (["serve", "--k_most", "x"], "modalloy serve: --k-most must be a whole number, got 'x'"),
    ],
)
def test_a_command_that_cannot_be_parsed_ends_with_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == USER_MISTAKE
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err


def test_an_impossible_setting_is_one_line(capsys, tmp_path):
    command = ("align", "efficientnet-lite0", "minilm", "--collection", "demo", "--out", tmp_path / "x")
    assert "epochs must be at least 1, got 0" in mistake(capsys, *command, "--align.epochs", "0")
    assert "threads must be at least 1, got 0" in mistake(capsys, "doctor", "demo", "--threads", "0")


def test_a_folder_that_cannot_be_written_is_one_line(capsys, tmp_path, tiny_collection):
    (tmp_path / "file").touch()
    command = ("extract", "subwords", "--collection", tiny_collection, "--features", tmp_path / "file")
    assert main([str(each) for each in command]) == USER_MISTAKE
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("modalloy extract: ") and str(tmp_path / "file") in last


def test_an_error_of_several_lines_is_joined(capsys, monkeypatch):
    def fail(*_):
        raise ConfigError("first\n  second")

    monkeypatch.setattr("modalloy.cli.doctor.Doctor.execute", fail)
    assert mistake(capsys, "doctor", "demo") == "modalloy doctor: first second"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("modalloy.cli.doctor.Doctor.execute", fail)
    with pytest.raises(ZeroDivisionError):
        main(["doctor", "demo"])


def test_an_interrupted_command_says_that_it_goes_on(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("modalloy.cli.run.Run.execute", interrupt)
    assert main(["run", "any.yaml"]) == INTERRUPTED == 130
    out, err = capsys.readouterr()
    assert out == "" and "the same command goes on" in err


def test_an_interruption_while_options_are_declared_is_one_line(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("modalloy.cli.run.Run.add_arguments", interrupt)
    assert main(["run", "any.yaml"]) == INTERRUPTED
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_interruption_while_libraries_load_is_one_line(capsys, monkeypatch):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "modalloy.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "modalloy.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert run_program() == INTERRUPTED
    assert capsys.readouterr().err.startswith("interrupted")


def test_usage_names_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert capsys.readouterr().out.startswith("usage: modalloy doctor ")


def test_threads_are_set(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("modalloy.cli.main.set_threads", asked.append)
    monkeypatch.setattr("modalloy.cli.doctor.Doctor.execute", lambda *_: {"checked": [], "problems": []})
    assert main(["doctor", "demo", "--threads", "3"]) == main(["doctor", "demo"]) == 0
    assert asked == [3, None]


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "modalloy", "search", "runs/nowhere", "cats", "--threads", "0", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (USER_MISTAKE, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("modalloy search: threads must be at least 1")


def test_json_is_one_document(capsys, monkeypatch):
    monkeypatch.setattr("modalloy.cli.doctor.Doctor.execute", lambda *_: {"checked": ["é"], "problems": []})
    assert main(["doctor", "demo", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == {"checked": ["é"], "problems": []} and "é" in out


@pytest.mark.parametrize(
    ("collection", "folder"),
    [
        ("demo", "features/demo"),
        ("pictures/", "features/pictures"),
        (".", "features/here"),
        ("flickr/manifest.jsonl", "features/flickr"),
        ("flickr/metadata.csv", "features/flickr"),
        ("data/dataset_coco.json", "features/dataset_coco"),
        ("data/flickr30k_{train,val,test}.json", "features/flickr30k"),
        ("shards/{000..012}.tar", "features/shards"),
    ],
)
def test_collections_have_different_feature_folders(collection, folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options = Namespace(collection=collection, images=None, features=None, extraction=None)
    assert _features_folder(options) == Path(folder)


def test_a_configurations_field_is_explained(capsys):
    with pytest.raises(SystemExit):
        main(["extract", "--help"])
    assert "Augmented copies of each training image" in " ".join(capsys.readouterr().out.split())
