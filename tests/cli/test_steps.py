"""extract, align, fuse and evaluate, one after the other; and search in what was fused."""

import json
import shutil
from dataclasses import replace

import pytest

from modalloy import load_encoder
from modalloy.align import CrossAttention
from modalloy.cli.main import USER_MISTAKE, main
from modalloy.encoders.efficientnet_lite import EfficientNetLite

SMALL = ["--fusion.towers.token_dim", "8", "--fusion.first_stage.epochs", "1", "--fusion.second_stage.epochs", "1"]


@pytest.fixture
def features(run_copy):
    return run_copy / "features"


@pytest.fixture
def inputs(run_copy):
    return [f"hacan:{run_copy / 'inputs' / number}" for number in "12"]


@pytest.fixture
def run(capsys, tiny_collection, features):
    def run(*arguments, json_output=True):
        command = [*map(str, arguments), "--collection", str(tiny_collection), "--features", str(features)]
        code = main([*command, "--json"] if json_output else command)
        out, err = capsys.readouterr()
        if code == 0:
            return json.loads(out) if json_output else out
        assert (code, out) == (USER_MISTAKE, "")
        # Before it there may be a log of what was read.
        line = err.strip().splitlines()[-1]
        assert line.startswith(f"modalloy {arguments[0]}: ")
        return line

    return run


def test_extract(run, features, tiny_manifest):
    shutil.rmtree(features / "subwords")
    stores = run("extract", "subwords", "efficientnet-lite0@64")["stores"]
    text = {"encoder": "subwords", "modality": "text", "rows": len(tiny_manifest.captions), "rejected": 0}
    image = {"encoder": "efficientnet-lite0@64", "modality": "image", "rows": len(tiny_manifest), "rejected": 2}
    assert stores == [
        text | {"folder": str(features / "subwords" / "text")},
        image | {"folder": str(features / "efficientnet-lite0@64" / "image")},
    ]
    table = run("extract", "subwords", json_output=False)
    assert "subwords" in table and str(len(tiny_manifest.captions)) in table


def test_align_with_a_local_branch(run, tmp_path):
    options = ["--align.epochs", "1", "--align.dim", "8", "--align.local.dim", "8", "--align.local.direction", "i2t"]
    made = run("align", "efficientnet-lite0@64", "minilm", "--out", tmp_path / "whole", *options)
    local = load_encoder(made["encoder"]).local.config
    assert (local.dim, local.attention, len(local.terms)) == (8, CrossAttention("i2t", "prob"), 3)
    last = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[-1])
    assert {"val_rsum", "val_local_rsum"} < set(last)
    found = run("evaluate", made["encoder"], "--split", "val")
    assert found
    chosen = ["--chosen.focal_candidates", "[2,5]", "--chosen.cross_candidates", "[2]", "--chosen.recall", "[1,100]"]
    chosen += ["--chosen.measures", "[R@1]"]
    shown = " ".join(run("evaluate", made["encoder"], "--stages", "chosen", *chosen, json_output=False).split())
    assert "Image to text on tune (* at least R@1 of 1)" in shown
    assert "Text to image on tune (no depth reaches R@1 of 100; * the deepest)" in shown
    assert "milliseconds a query (in batches), text to image: global " in shown and "cross-layer - focal" in shown


def test_align_fuse_search_evaluate(run, inputs, tmp_path, capsys):
    options = ["--out", tmp_path / "third", "--align.epochs", "1", "--align.dim", "8"]
    made = run("align", "vit-s14-focus@56", "minilm", "--name", "third", *options)
    assert made == {"encoder": f"hacan:{tmp_path / 'third'}", "name": "third", "dim": 8}

    fused = run("fuse", inputs[0], made["encoder"], "--out", tmp_path / "alloy", "--seed", "3", *SMALL)
    assert fused["encoder"] == f"alloy:{tmp_path / 'alloy'}" and fused["name"] == "HADA stage 2"
    assert (tmp_path / "alloy" / "fits" / "hada-stage-2" / "seed-3" / "fit.json").exists()

    assert main(["search", str(tmp_path / "alloy"), "a red telephone", "-k", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 2

    # A nested alloy, beside the encoders that it is made of.
    nested = run("fuse", fused["encoder"], inputs[1], "--method", "mean", "--out", tmp_path / "nested")
    found = run("evaluate", nested["encoder"], inputs[1], "--split", "val")
    assert list(found["systems"]) == ["mean of cosines", "patches + subwords"]
    assert found["val"]["images"] == 9
    table = run("evaluate", *inputs, json_output=False)
    assert "nets + sentences" in table and "Differences of RSum" in table


def test_results_for_people_name_the_spec(run, inputs, tmp_path):
    out = run("fuse", *inputs, "--method", "tuned", "--out", tmp_path / "alloy", json_output=False)
    assert out.strip() == f"validation-tuned weighted cosine, 32 wide: use it as alloy:{tmp_path / 'alloy'}"
    options = ["--align.epochs", "1", "--align.dim", "8", "--out", tmp_path / "aligned"]
    out = run("align", "efficientnet-lite0@64", "subwords", *options, json_output=False)
    assert out.strip() == f"efficientnet-lite0@64 + subwords, 8 wide: use it as hacan:{tmp_path / 'aligned'}"


def test_fuse_decides_by_itself_and_says_how(run, inputs, tmp_path):
    arguments = ["fuse", *inputs, "--method", "auto", "--out", tmp_path / "alloy", *SMALL]
    made = run(*arguments)
    choice = json.loads((tmp_path / "alloy" / "choice.json").read_text())
    assert made["choice"] == choice and made["name"] == f"auto: {choice['chosen']}"
    assert made["regime"]["verdict"] in ("shared", "foreign", "mixed")
    assert [each["name"] for each in made["regime"]["inputs"]] == inputs
    # Ten images can't judge.
    assert (
        choice["choosing"]["images"] + choice["judging"]["images"] == 10 and "nothing was trained" in choice["sentence"]
    )
    shown = run(*arguments, json_output=False)
    for text in ("RSum on the validation items", "mean of cosines", "nothing was trained", "Regime ", made["encoder"]):
        assert text in " ".join(shown.split())


def test_weighted_inputs_and_the_regime_by_name(run, inputs, tmp_path):
    options = ["--fusion.weighted_inputs", f"[{inputs[1]}]", "--fusion.weights", "tuned", "--fusion.regime", "foreign"]
    made = run("fuse", *inputs, "--method", "hada-1", "--out", tmp_path / "alloy", *SMALL, *options)
    assert made["regime"]["verdict"] == "foreign" and made["dim"] == 32 + 16
    wrong = run("fuse", *inputs, "--out", tmp_path / "other", *SMALL, "--fusion.weighted_inputs", "[2]")
    assert "there is no input 2; name some of hacan:" in wrong
    for options, message in (
        (["--stages", "many"], "numbers of candidates like 100:20"),
        (["--stages", "5:2", "--chosen.recall", "65"], "--chosen's options say how --stages chosen chooses"),
        (["--stages", "chosen", "--chosen.recall", "65", "--chosen.loss", "0.2"], "give one of loss and recall"),
        (["--global_weight", "chosen"], "--global-weight is one of --stages; add that"),
        (["--stages", "5:2"], "has no local branch to re-rank by"),
    ):
        assert message in run("evaluate", inputs[0], *options)
    wrong = run("fuse", *inputs, "--out", tmp_path / "other", *SMALL, "--method", "magic")
    assert "unknown method 'magic'; choose one of mean of cosines" in wrong


def test_encoders_of_one_name_are_told_apart(run, run_copy, inputs):
    config = run_copy / "inputs" / "2" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"name": "nets + sentences"}))
    assert list(run("evaluate", *inputs)["systems"]) == inputs


def test_mistakes(run, inputs, tmp_path, tiny_collection):
    assert "Did you mean 'minilm'" in run("extract", "subwords", "minilmm")
    assert "there is no split 'tset'" in run("evaluate", *inputs, "--split", "tset")
    assert "given 2 times" in run("evaluate", inputs[0], inputs[0])
    assert "align it with a backbone" in run("evaluate", inputs[0], "minilm")
    assert "at least 2 encoders" in run("fuse", inputs[0], "--out", tmp_path / "alloy")
    assert f"{tmp_path}/config.json doesn't exist" in run("evaluate", f"hacan:{tmp_path}")
    assert f"{tmp_path}/config.json doesn't exist" in run("evaluate", f"alloy:{tmp_path}")
    assert "needs an argument after a colon" in run("evaluate", "alloy")
    assert "seed" in run("fuse", *inputs, "--seed", "-1", "--out", tmp_path / "alloy", *SMALL)


def test_a_missing_collection(capsys, tmp_path):
    assert main(["extract", "subwords", "--collection", str(tmp_path / "nowhere")]) == USER_MISTAKE
    assert capsys.readouterr().err == f"modalloy extract: {tmp_path / 'nowhere'} isn't there; check the path.\n"


def test_a_checkpoint_that_is_not_ours(run, run_copy):
    (run_copy / "inputs" / "1" / "config.json").write_text('{"model_type": "clip"}')
    assert "modalloy-aligned-encoder" in run("evaluate", f"hacan:{run_copy / 'inputs' / '1'}")


def test_features_of_other_weights(run, monkeypatch):
    fingerprint = EfficientNetLite.fingerprint

    def other(self, modality):
        return replace(fingerprint(self, modality), weights_sha256="0" * 64)

    monkeypatch.setattr(EfficientNetLite, "fingerprint", other)
    assert "made by another encoder or preprocessing" in run("extract", "efficientnet-lite0@64")


def test_a_truncated_shard_is_made_again(run, features, inputs):
    before = run("evaluate", *inputs)
    shards = [*features.glob("hacan-*/text/shard-*"), *features.glob("subwords/text/shard-*")]
    assert len(shards) == 3
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:-64])
    assert run("evaluate", *inputs) == before
