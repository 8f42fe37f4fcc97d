import re
from dataclasses import replace
from pathlib import Path

import pytest

from modalloy.data.splits import SplitsConfig
from modalloy.errors import ConfigError
from modalloy.training.align_config import AlignConfig, LocalBranchConfig
from modalloy.training.tracking import TrackingConfig
from modalloy.workflow.config import DEMO_CONFIG, InputConfig, RunConfig, features_folder, load_config, save_config
from modalloy.workflow.fusion_config import SYSTEMS, FusionConfig

MINIMAL = """
collection: pictures
folder: runs/x
inputs:
  - {name: a, encoder: "hacan:a"}
  - {name: b, image: efficientnet-lite0, text: minilm}
"""


@pytest.fixture
def load(tmp_path):
    def load(text, overrides=None):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return load


def test_what_the_file_leaves_out_has_its_default(load):
    config = load(MINIMAL)
    assert config == RunConfig(
        collection="pictures",
        folder="runs/x",
        inputs=(InputConfig("a", encoder="hacan:a"), InputConfig("b", image="efficientnet-lite0", text="minilm")),
    )
    assert config.inputs[1].align == AlignConfig()


def test_a_saved_configuration_is_read_back(load, tmp_path):
    text = MINIMAL + "seeds: [4, 7]\nthreads: 2\nfusion:\n  first_stage: {epochs: 3}\n  towers: {output_dim: 5}\n"
    config = load(text)
    assert (config.seeds, config.threads, config.fusion.first_stage.epochs) == ((4, 7), 2, 3)
    save_config(config, tmp_path / "saved.yaml")
    # Paths are saved whole, so that the run can be gone on with from another folder.
    assert load_config(tmp_path / "saved.yaml") == replace(config, collection=str(Path.cwd() / "pictures"))


def test_an_input_is_aligned_with_a_local_branch_if_it_says_so(load, tmp_path):
    whole = load(MINIMAL, {"inputs.1.align": {"local": {"direction": "i2t", "dim": 64}}})
    assert whole.inputs[1].align == AlignConfig(local=LocalBranchConfig(64, "i2t"))
    assert load(MINIMAL, {"inputs.1.align.local.dim": 32}).inputs[1].align.local == LocalBranchConfig(32)
    save_config(whole, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml").inputs == whole.inputs


@pytest.mark.parametrize(
    ("local", "said"),
    [
        ("true", "inputs.1.align.local must hold keys and values, got True"),
        ("{dims: 3}", "unknown key inputs.1.align.local.dims; did you mean dim?"),
        ("{dim: x}", "inputs.1.align.local.dim must be a whole number or null, got 'x'"),
        ("{direction: both}", "inputs.1.align.local.direction must be one of t2i, i2t, got 'both'"),
        ("{dim: 0}", "local.dim must be at least 1, got 0"),
    ],
)
def test_an_impossible_local_branch_is_refused(load, local, said):
    text = f"[{{name: a, encoder: x}}, {{name: b, image: y, text: z, align: {{local: {local}}}}}]"
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(f"collection: c\nfolder: f\ninputs: {text}")


def test_keys_in_the_place_of_a_list_and_of_an_optional_group_are_told_apart(load):
    with pytest.raises(ConfigError, match=r"inputs must be a list, each keys and values, got \{'name'"):
        load("collection: c\nfolder: f\ninputs: {name: a, encoder: x}")
    with pytest.raises(ConfigError, match=r"unknown key stages\.depth\.focal_candidate; did you mean focal_candidates"):
        load(MINIMAL + "stages: {depth: {focal_candidate: 3}}")
    assert load(MINIMAL + "stages: {depth: null, fold_size: 3}").stages.depth is None


def test_a_pretrained_alloy_is_saved_by_its_whole_path(load, tmp_path):
    for given in ("runs/other", "alloy:runs/other"):
        save_config(load(MINIMAL, {"fusion.pretrained": given}), tmp_path / "saved.yaml")
        assert load_config(tmp_path / "saved.yaml").fusion.pretrained == str(Path.cwd() / "runs/other")


def test_splits_are_drawn_as_the_file_says(load):
    text = MINIMAL + "splits: {seed: 1, tune: 500, inputs: 0.5, test: val}\n"
    assert load(text).splits == SplitsConfig(1, 500, 0.5, "val")
    assert load(MINIMAL, {"splits.tune": 7}).splits == SplitsConfig(tune=7)


@pytest.mark.parametrize(("chosen", "kept"), [("[b]", ("b",)), ("[1, a]", (1, "a")), ("all", "all"), ('["1"]', ("1",))])
def test_weighted_inputs_may_be_named(load, tmp_path, chosen, kept):
    text = MINIMAL.replace("name: a", "name: '1'") if kept == ("1",) else MINIMAL
    config = load(text + f"fusion: {{weighted_inputs: {chosen}, weights: tuned, criterion: contrast, regime: auto}}")
    assert config.fusion.weighted_inputs == kept
    assert (config.fusion.weights, config.fusion.criterion, config.fusion.regime) == ("tuned", "contrast", "auto")
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml").fusion == config.fusion


def test_the_demo_configuration_is_whole():
    config = load_config(DEMO_CONFIG)
    assert config.collection == "demo" and len(config.inputs) == 2 and len(config.seeds) > 1
    assert config.fusion == FusionConfig.small()


@pytest.mark.parametrize(
    ("option", "value"),
    [("towers.method", "concat-linear"), ("towers.hidden", 3), ("first_stage.seed", 1), ("second_stage.seed", 2)],
)
def test_what_the_run_decides_itself_is_refused(load, option, value):
    with pytest.raises(ConfigError, match=f"fusion.{option} can't be set"):
        load(MINIMAL, {f"fusion.{option}": value})


def test_hada_as_its_authors_coded_it_can_be_chosen(load):
    overrides = {"fusion.towers.method": "hada-original", "fusion.towers.original.norm": "batch"}
    towers = load(MINIMAL, overrides).fusion.towers
    assert towers == replace(load(MINIMAL).fusion.towers, method="hada-original", original=towers.original)
    assert (towers.original.norm, towers.original.own_edge) == ("batch", 0.9)


@pytest.mark.parametrize("setting", ["chunk_size=4", "devices=2"])
@pytest.mark.parametrize("place", ["first_stage", "second_stage", "experts"])
def test_what_a_batch_norm_rules_out_is_refused_when_the_configuration_is_read(load, place, setting):
    towers = {"method": "hada-original", "original": {"norm": "batch"}}
    key, value = setting.split("=")
    training = {key: int(value)}
    expert = {"fusion.experts": [{"name": "old", "towers": towers, "training": training}]}
    overrides = expert if place == "experts" else {"fusion.towers": towers, f"fusion.{place}": training}
    named = "the expert 'old': training" if place == "experts" else f"fusion.{place}"
    with pytest.raises(ConfigError, match=f"{named}.{setting} would change what a BatchNorm sees"):
        load(MINIMAL, overrides)
    if place != "experts":
        load(MINIMAL, {f"fusion.{place}": training})
        kept = ["mean of cosines", "validation-tuned weighted cosine", "B2 (concat-linear)"]
        # Without HADA there is no BatchNorm.
        load(MINIMAL, {**overrides, "fusion.methods": kept, "fusion.experts": [{"name": "new"}]})


def test_hada_as_its_authors_coded_it_takes_two_inputs(load):
    three = MINIMAL + '  - {name: c, encoder: "hacan:c"}\n'
    assert len(load(three).inputs) == 3
    with pytest.raises(ConfigError, match="'hada-original' fuses two encoders, got 3"):
        load(three, {"fusion.towers.method": "hada-original"})


def test_overrides_replace_what_the_file_says(load):
    config = load(MINIMAL, {"folder": "other", "fusion.second_stage.epochs": 9, "seeds": [5]})
    assert (config.folder, config.fusion.second_stage.epochs, config.seeds) == ("other", 9, (5,))
    # What stands beside the overridden key stays.
    assert config.fusion.second_stage == replace(load(MINIMAL).fusion.second_stage, epochs=9)


def test_an_override_counts_positions_in_a_list(load):
    config = load(MINIMAL + "seeds: [1, 2]", {"inputs.1.name": "x", "inputs.0.encoder": "alloy:b", "seeds.1": 7})
    assert (config.inputs[0].encoder, config.inputs[1].name, config.seeds) == ("alloy:b", "x", (1, 7))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("folder.name", "goes through a plain value at 'name'"),
        ("inputs.0.name.first", "goes through a plain value at 'first'"),
        ("seeds.first", "'first' is no position in a list of 1"),
        ("seeds.1", "'1' is no position in a list of 1"),
        ("inputs.2.name", "'2' is no position in a list of 2"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(load, key, said):
    with pytest.raises(ConfigError, match=f"{key!r}:? {said}"):
        load(MINIMAL + "seeds: [1]", {key: "x"})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("bogus: 1", "unknown key bogus (known: collection, "),
        ("fusion: {first_stage: {epohcs: 3}}", "unknown key fusion.first_stage.epohcs; did you mean epochs? (known: "),
        ("fusion: {first_stage: {epochs: 2.5}}", "fusion.first_stage.epochs must be a whole number, got 2.5"),
        ("fusion: {first_stage: {epochs: true}}", "fusion.first_stage.epochs must be a whole number, got True"),
        ("splits: {tune: -1}", "splits.tune must be at least 0 images, got -1"),
        ("stages: {depth: {focal_candidate: 1}}", "unknown key stages.depth.focal_candidate; did you mean focal_c"),
        ("splits: {tunes: 1}", "unknown key splits.tunes; did you mean tune?"),
        ("splits: {test: train}", "splits.test must be one of test, val, got 'train'"),
        ("fusion: 3", "fusion must hold keys and values, got 3"),
        ("fusion: [1]", "fusion must hold keys and values, got [1]"),
        ("fusion: {towers: 3}", "fusion.towers must hold keys and values, got 3"),
        ("extraction: x", "extraction must hold keys and values, got 'x'"),
        ("extraction: {augmentation: 3}", "extraction.augmentation must hold keys and values, got 3"),
        ("collection: 3", "collection must be a text, got 3"),
        ("threads: many", "threads must be a whole number or null, got 'many'"),
        ("seeds: [1, x]", "seeds.1 must be a whole number, got 'x'"),
        ("fusion: {first_stage: {epochs: 0}}", "epochs must be at least 1"),
        ("fusion: {towers: {method: magic}}", "magic"),
        (
            "fusion: {weighted_inputs: none}",
            "fusion.weighted_inputs must be one of best, all or a list, each a text or a whole number, got 'none'",
        ),
        ("fusion: {weighted_inputs: []}", "weighted_inputs must name one input or more, got none"),
        ("fusion: {weighted_inputs: [a, c]}", "there is no input 'c'; name some of a, b, or positions from 0 to 1"),
        ("fusion: {weighted_inputs: [a, 0]}", "each input once, got 'a' twice"),
        ("fusion: {weighted_inputs: [2]}", "there is no input 2"),
        ("fusion: {weights: even}", "fusion.weights must be one of learned, tuned, got 'even'"),
        ("fusion: {criterion: loss}", "fusion.criterion must be one of rsum, contrast, got 'loss'"),
        ("fusion: {regime: both}", "fusion.regime must be one of auto, shared, foreign or null, got 'both'"),
        ("seeds: 3", "seeds"),
        ("seeds: []", "one or more different seeds"),
        ("seeds: [1, 1]", "one or more different seeds"),
        ("seeds: [-1]", "one or more different seeds"),
        ("threads: 0", "threads must be at least 1"),
        ("extraction: {batch_size: many}", "batch_size"),
        ("images: [1]", "images"),
        ("tracking: {tracker: wandb}", "tracking.tracker must be one of none, mlflow, tensorboard, csv, got 'wandb'"),
        ("tracking: {tracker: csv, uri: x}", "tracking.uri is MLflow's, but the tracker is 'csv'"),
        ("fusion: {first_stage: {precision: 16}}", "fusion.first_stage.precision must be one of fp32, bf16, got 16"),
    ],
)
def test_unknown_keys_and_impossible_values_are_refused(load, tmp_path, more, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        load(MINIMAL + more)
    assert str(error.value).startswith(f"{tmp_path / 'run.yaml'}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("[]", "at least 2 inputs"),
        ('[{name: a, encoder: "hacan:a"}]', "at least 2 inputs"),
        ('[{name: a, encoder: "hacan:a"}, {name: a, encoder: "hacan:b"}]', "different names"),
        ('[{name: a, encoder: x}, {name: " ", encoder: y}]', "a blank one"),
        ("[{name: a, encoder: x}, {name: b}]", "'b' needs either `encoder`"),
        ("[{name: a, encoder: x}, {name: b, image: y}]", "'b' needs either `encoder`"),
        ("[{name: a, encoder: x}, {name: b, encoder: y, image: z}]", "'b' needs either `encoder`"),
        ("[{name: a, encoder: x}, {name: b, encoder: y, image: z, text: w}]", "'b' needs either `encoder`"),
        ("[{encoder: x}, {name: b, encoder: y}]", "the key inputs.0.name is missing"),
        ("[{name: a, encodr: x}, {name: b, encoder: y}]", "unknown key inputs.0.encodr; did you mean encoder?"),
        ("[a, b]", "inputs.0 must hold keys and values, got 'a'"),
        ("[{name: a, encoder: x}, {name: b, image: y, text: z, align: {epochs: 0}}]", "epochs must be at least 1"),
    ],
)
def test_impossible_inputs_are_refused(load, inputs, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(f"collection: c\nfolder: f\ninputs: {inputs}")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("fusion", 3, "--set fusion: fusion must hold keys and values, got 3"),
        ("fusion.first_stage.epohcs", 3, "--set fusion.first_stage.epohcs: unknown key"),
        ("inputs.0.encoder", 3, "--set inputs.0.encoder: inputs.0.encoder must be a text or null, got 3"),
        ("fusion", {"first_stage": {"epochs": "x"}}, "--set fusion: fusion.first_stage.epochs must be a whole number"),
    ],
)
def test_a_mistake_in_an_override_names_it_instead_of_the_file(load, key, value, said):
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        load(MINIMAL, {key: value})


def test_a_number_in_scientific_notation_is_one(load):
    assert load(MINIMAL + "fusion: {first_stage: {learning_rate: 1e-3}}").fusion.first_stage.learning_rate == 0.001


def test_the_features_folder_is_saved_whole(load, tmp_path):
    config = load(MINIMAL + "features: features/shared")
    assert features_folder(config) == Path("features/shared")
    assert features_folder(load(MINIMAL)) == Path("runs/x/features")
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml").features == str(Path.cwd() / "features/shared")


def test_the_tracking_folder_is_saved_whole(load, tmp_path):
    config = load(MINIMAL + "tracking: {tracker: csv, folder: tracked}")
    assert config.tracking == TrackingConfig("csv", folder="tracked")
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml").tracking.folder == str(Path.cwd() / "tracked")
    assert load(MINIMAL).tracking == TrackingConfig()


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_input_may_not_be_called_like_a_fused_system(load, name):
    with pytest.raises(ConfigError, match="is a fused system's"):
        load(f'collection: c\nfolder: f\ninputs: [{{name: "{name}", encoder: x}}, {{name: b, encoder: y}}]')


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1", "isn't YAML"), ("- 1", "must hold keys and values, got list"), ("", "got NoneType"), ("x", "got str")],
)
def test_what_is_no_mapping_is_refused(load, text, said):
    with pytest.raises(ConfigError, match=said):
        load(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml can't be read \(No such file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"folder: caf\xe9")
    with pytest.raises(ConfigError, match="isn't YAML"):
        load_config(tmp_path / "latin.yaml")


def test_an_override_of_one_place_leaves_the_other_places_of_a_yaml_alias(load):
    text = (
        MINIMAL
        + """
fusion:
  experts:
    - {name: one, towers: &towers {method: concat-linear}, training: &training {epochs: 9}}
    - {name: two, towers: *towers, training: *training}
"""
    )
    changed = load(text, {"fusion.experts.0.training.epochs": 3, "fusion.experts.0.towers.dropout": 0.1})
    assert [each.training.epochs for each in changed.fusion.experts] == [3, 9]
    assert [each.towers.dropout for each in changed.fusion.experts] == [0.1, 0.5]


def test_an_expert_may_have_prefixes_and_teachers(load):
    text = MINIMAL + (
        "fusion: {experts: [{name: graph, training: {prefixes: [64, 128]}},"
        " {name: short, towers: {method: concat-linear, output_dim: 256, start: random}, teachers: [graph],"
        " in_alloy: false, training: {teacher_temperature: 0.05}}]}"
    )
    graph, short = load(text).fusion.experts
    assert (graph.training.prefixes, graph.teachers) == ((64, 128), ())
    assert (short.teachers, short.training.teacher_temperature) == (("graph",), 0.05)


def test_an_inputs_name_that_the_cut_system_has_is_refused(load):
    text = MINIMAL.replace("name: a", "name: 'HADA stage 2, 64 numbers'")
    load(text + "fusion: {vector_dim: 32}")
    with pytest.raises(ConfigError, match="'HADA stage 2, 64 numbers' is a fused system's"):
        load(text + "fusion: {vector_dim: 64}")


@pytest.mark.parametrize("name", ["a", "alloy", "HADA stage 1", "B2 with the inputs"])
def test_an_experts_name_that_a_table_already_has_is_refused(load, name):
    text = MINIMAL + f"fusion: {{experts: [{{name: B2}}, {{name: {name}}}]}}"
    with pytest.raises(ConfigError, match=name):
        load(text)


def test_a_pretrained_alloy_that_nothing_would_start_from_is_refused(load):
    text = MINIMAL + (
        "fusion: {pretrained: runs/other, methods: [mean of cosines, validation-tuned weighted cosine], "
        "experts: [{name: linear}]}"
    )
    with pytest.raises(ConfigError, match="pretrained starts HADA, which isn't among methods"):
        load(text)
