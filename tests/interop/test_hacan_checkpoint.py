import fractions
import shutil
from pathlib import Path

import numpy as np
import original_hacan as original
import pytest
import torch
import transformers
from damaged_files import damaged_copies
from PIL import Image

from modalloy.align import AlignedEncoder, CrossAttention
from modalloy.data.manifest import Item, Manifest
from modalloy.encoders import Encoded, load_encoder
from modalloy.errors import CheckpointError, ConfigError
from modalloy.features.derive import derive
from modalloy.features.extract import extract
from modalloy.interop.hacan_checkpoint import import_hacan_checkpoint
from modalloy.interop.hacan_weights import read_hacan_checkpoint

HEADS = 2
TEXTS = {
    "A red PHONE": "[CLS] a red phone [SEP]",
    "the dogs running on the house!": "[CLS] the dog ##s run ##ning on the house ! [SEP]",
    "an unicorn .": "[CLS] an [UNK] . [SEP]",
    "blue " * 50: "[CLS] " + "blue " * 30 + "[SEP]",
}
SIZES = [(640, 427), (375, 500), (50, 30), (224, 227), (256, 256)]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return original.state_dict()


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    return save_words(tmp_path_factory.mktemp("words"), original.PIECES)


@pytest.fixture(scope="module")
def imported(tmp_path_factory, state, words) -> AlignedEncoder:
    folder = tmp_path_factory.mktemp("hacan")
    path = original.save_lightning(folder / "epoch=10.ckpt", state)
    return import_hacan_checkpoint(path, folder / "run", tokenizer=words, text_heads=HEADS)


@pytest.fixture
def small(tmp_path):
    """A checkpoint of a few layers, changed or not, and its import."""

    def run(words: Path, change=None, config=original.CONFIG, **more):
        state = original.state_dict(depths=(1, 2, 1, 1), layers=2)
        if change is not None:
            change(state)
        path = original.save_lightning(tmp_path / "last.ckpt", state, config, **more)
        return import_hacan_checkpoint(path, tmp_path / "run", tokenizer=words, text_heads=HEADS)

    return run


_TEXT_MAPS = ("cross_modal_text_transform", "cross_modal_text_transform_2")


def save_words(folder: Path, pieces: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in SIZES]
    return [Image.fromarray(each) for each in noise] + [Image.fromarray(noise[0]).convert("L").convert("RGB")]


def test_the_published_model_has_573_tensors(state):
    assert len(state) == 573
    assert sum(name.startswith("convnexts.") for name in state) == 344
    assert sum(name.startswith("text_transformer.") for name in state) == 199


def test_image_embeddings_are_those_of_the_original(imported, state):
    expected = torch.stack(
        [original.head(state, "img_enc", original.image_global(state, picture)) for picture in pictures()]
    )
    found = load_encoder(imported.spec).encode_images(pictures(), batch_size=4).embedding
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).norm() > 0.01


def test_text_embeddings_are_those_of_the_original(imported, state):
    ids = [[original.PIECES.index(piece) for piece in pieces.split()] for pieces in TEXTS.values()]
    expected = torch.stack([original.head(state, "txt_enc", original.text_global(state, each, HEADS)) for each in ids])
    found = load_encoder(imported.spec).encode_texts(list(TEXTS)).embedding
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).norm() > 0.01


def test_preprocessing_is_that_of_the_evaluation(imported):
    for picture in pictures():
        found = imported.preprocess("image", picture)
        torch.testing.assert_close(found, original.pixels(picture), atol=1e-5, rtol=0)
    for text, pieces in TEXTS.items():
        assert imported.preprocess("text", text).tolist() == [original.PIECES.index(each) for each in pieces.split()]


def test_the_batch_does_not_matter(imported):
    alone = Encoded.concatenate(imported.encode_texts([text]) for text in TEXTS)
    together = imported.encode_texts(list(TEXTS))
    torch.testing.assert_close(together.embedding, alone.embedding, atol=1e-6, rtol=0)
    assert torch.equal(together.lengths, alone.lengths)


def test_stored_features_give_the_same_to_1e_3(imported, tmp_path):
    picture = pictures()[0]
    picture.save(tmp_path / "noise.png")
    manifest = Manifest(tmp_path, (Item("noise", "noise.png", "0" * 64, "test", tuple(list(TEXTS)[:3])),))
    for modality, spec in (("image", "convnext"), ("text", "bert")):
        backbone = load_encoder(imported.backbones[modality].spec)
        assert backbone.spec == f"{spec}:{Path(imported.spec.removeprefix('hacan:')) / modality}"
        base = extract(backbone, modality, manifest, tmp_path / spec, progress=False)
        store = derive(base, imported, tmp_path / modality, lambda encoded, m=modality: imported.project(m, encoded))
        direct = imported.encode_images([picture]) if modality == "image" else imported.encode_texts(list(TEXTS)[:3])
        assert (store.embeddings() - direct.embedding).abs().max() <= 1e-3


def test_backbones_are_those_of_transformers(imported, state):
    folder = Path(imported.spec.removeprefix("hacan:"))
    image = transformers.AutoModel.from_pretrained(folder / "image")
    text = transformers.AutoModel.from_pretrained(folder / "text")
    assert (type(image).__name__, type(text).__name__) == ("ConvNextModel", "BertModel")
    assert torch.equal(image.encoder.stages[2].layers[26].layer_scale_parameter, state["convnexts.stages.2.26.gamma"])
    assert transformers.AutoTokenizer.from_pretrained(folder / "text").model_max_length == 32
    assert imported.width("image") == 12
    assert imported.token_grid() == (7, 7)
    assert imported.token_texts("dogs") == ["[CLS]", "dog", "##s", "[SEP]"]


def test_the_local_branch_is_kept(imported, state):
    kept = load_encoder(imported.spec).local.state_dict()
    names = {
        "image_high": "fc3",
        "image_mid": "fc2",
        "text_high": "cross_modal_text_transform",
        "text_mid": "cross_modal_text_transform_2",
    }
    assert sorted(kept) == sorted(f"{name}.{key}" for name in names for key in ("weight", "bias"))
    for name, theirs in names.items():
        assert torch.equal(kept[f"{name}.weight"], state[f"{theirs}.weight"])
        assert torch.equal(kept[f"{name}.bias"], state[f"{theirs}.bias"])
    assert imported.local.config.attention == CrossAttention("t2i", "prob")
    assert imported.training["file"] == "epoch=10.ckpt"
    assert imported.name == "HACAN epoch=10"


def test_the_local_branch_compares_what_the_original_does(imported, state):
    """Regions of stages 3 and 4 and BERT's layers 10 and 12, mapped with the original's weights."""
    encoder = load_encoder(imported.spec)
    network, bert = encoder.backbone("image")._network, encoder.backbone("text")._network
    seen = {}
    for name, module in (
        ("fc2", network.encoder.stages[2]),
        ("fc3", network.encoder.stages[3]),
        ("cross_modal_text_transform_2", bert.encoder.layer[9]),
        ("cross_modal_text_transform", bert.encoder.layer[11]),
    ):
        module.register_forward_hook(lambda *call, name=name: seen.__setitem__(name, call[2]))
    items = {"image": pictures()[:1], "text": list(TEXTS)[:1]}
    for modality, maps in (("image", ("fc3", "fc2")), ("text", _TEXT_MAPS)):
        features = {}
        for level in ("high", "mid"):
            encode = getattr(encoder.backbone(modality, level), f"encode_{modality}s")
            encoded = encode(items[modality])
            features[level] = encoded.tokens, encoded.lengths
        found = encoder.project_tokens(modality, features)
        for level, name in zip(("high", "mid"), maps, strict=True):
            hidden = seen[name].flatten(2).mT if modality == "image" else seen[name]
            expected = hidden @ state[f"{name}.weight"].T + state[f"{name}.bias"]
            torch.testing.assert_close(found[level].values, expected, atol=1e-5, rtol=1e-5)


def test_the_local_branch_attends_as_the_checkpoint_says(small, words):
    config = {**original.CONFIG, "direction": "i2t", "focal_type": "equal", "lambda_softmax": 4}
    assert small(words, config=config).local.config.attention == CrossAttention("i2t", "equal", 4.0)
    for odd in ({"direction": "both"}, {"focal_type": 1}, {"lambda_softmax": "much"}, {"lambda_softmax": -1}):
        with pytest.raises(CheckpointError, match="attention isn't HACAN's"):
            small(words, config={**original.CONFIG, **odd})


def test_the_folder_can_be_moved(small, words, tmp_path):
    before = small(words)
    embedding = before.encode_texts(["a cat"]).embedding
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    after = load_encoder(f"hacan:{tmp_path / 'elsewhere'}")
    assert torch.equal(after.encode_texts(["a cat"]).embedding, embedding)
    assert after.fingerprint("text") == before.fingerprint("text")


def test_a_checkpoint_is_imported_again(small, words):
    first = small(words)
    assert small(words).fingerprint("image") == first.fingerprint("image")


def test_a_bare_state_dict_counts_as_published(small, words):
    assert small(words, config=None).preprocess("text", "A cat").tolist() == [2, 5, 12, 3]


def test_the_checkpoints_own_settings_count(small, words):
    encoder = small(words, config={**original.CONFIG, "max_text_len": 4, "tokenizer": "bert-base-cased"})
    assert encoder.preprocess("text", "A red cat on").tolist() == [2, 1, 8, 3]


def test_tokenizers_as_transformers_saves_them(small, words, tmp_path):
    transformers.BertTokenizer.from_pretrained(words).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.txt").exists()
    assert small(tmp_path / "saved").preprocess("text", "A cat").tolist() == [2, 5, 12, 3]


def test_weights_in_half_precision(small, words):
    def halve(state):
        state.update({name: tensor.half() for name, tensor in state.items()})

    encoder = small(words, halve)
    assert encoder.encode_texts(["a cat"]).embedding.dtype == torch.float32


def test_positions_that_older_versions_of_transformers_stored_are_left_out(small, words):
    name = "text_transformer.embeddings.position_ids"
    encoder = small(words, lambda state: state.update({name: torch.arange(64)[None]}))
    assert encoder.fingerprint("text") == small(words).fingerprint("text")


def test_berts_heads_are_64_wide(tmp_path):
    path = original.save_lightning(tmp_path / "a.ckpt", original.state_dict((1, 1, 1, 1), layers=1, hidden=128))
    assert read_hacan_checkpoint(path).text_config["num_attention_heads"] == 2
    path = original.save_lightning(tmp_path / "b.ckpt", original.state_dict((1, 1, 1, 1), layers=1))
    with pytest.raises(ConfigError, match="width 16 can't be shared by 0 attention heads; set text_heads"):
        read_hacan_checkpoint(path)
    with pytest.raises(ConfigError, match="by 3 attention heads"):
        read_hacan_checkpoint(path, text_heads=3)


def _drop(*names):
    return lambda state: [state.pop(name) for name in names]


def _put(name, value):
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("txt_enc.v_fc2.weight"), "lacks txt_enc.v_fc2.weight"),
        (_drop("img_enc.v_fc3.bias"), "lacks img_enc.v_fc3.bias"),
        (_drop("fc3.bias"), "lacks fc3.bias"),
        (_drop("cross_modal_text_transform_2.weight"), "lacks cross_modal_text_transform_2.weight"),
        (_drop("convnexts.stages.1.0.gamma"), "lacks convnexts.stages.1.0.gamma"),
        (_drop("convnexts.stages.1.0.norm.bias", "convnexts.norm.bias"), "convnexts.stages.1.0.norm.bias, convnexts"),
        (_drop("convnexts.downsample_layers.2.1.weight"), r"lacks convnexts.downsample_layers.2.1.weight"),
        (_drop("text_transformer.pooler.dense.weight"), r"lacks text_transformer.pooler.dense.weight\.$"),
        (_drop("text_transformer.encoder.layer.1.attention.self.key.bias"), "layer.1.attention.self.key.bias"),
        (_drop("text_transformer.embeddings.word_embeddings.weight"), "lacks text_transformer.embeddings.word"),
        (_put("swin.layers.0.weight", torch.ones(2)), "unknown tensors: swin.layers.0.weight"),
        (_put("convnexts.stages.0.0.extra", torch.ones(2)), "unknown tensors: convnexts.stages.0.0.extra"),
        (_put("convnexts.norm.bias", torch.ones(3)), r"convnexts.norm.bias of shape \(3,\) instead of \(12,\)"),
        (_put("img_enc.v_fc2.weight", torch.ones(14, 5)), r"img_enc.v_fc2.weight of shape \(14, 5\) instead of"),
        (_put("fc2.weight", torch.ones(10, 3)), r"fc2.weight of shape \(10, 3\) instead of \(10, 8\)"),
        (_put("fc2.weight", torch.tensor(1.0)), r"fc2.weight of shape \(\) instead of"),
        (_put("fc3.weight", torch.tensor(1.0)), r"fc3.weight can't have the shape \(\)"),
        (_put("fc2.bias", torch.full((10,), torch.nan)), "fc2.bias with numbers that aren't finite"),
        (_put("fc2.bias", 3), "should hold tensors by name, but fc2.bias isn't one"),
        (lambda state: state.clear(), "should hold a `state_dict`"),
    ],
)
def test_tensors_that_are_not_the_models(small, words, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        small(words, change)
    assert not (tmp_path / "run").exists()


def test_other_backbones_are_refused(small, words):
    def swin(state):
        for name in [name for name in state if name.startswith("convnexts.")]:
            state[f"vit_model.{name}"] = state.pop(name)

    with pytest.raises(CheckpointError, match=r"holds no convnexts\.\*, a ConvNeXt; .* ConvNeXt with BERT"):
        small(words, swin)
    with pytest.raises(CheckpointError, match=r"holds no text_transformer\.\*, a BERT"):
        small(words, lambda state: [state.pop(name) for name in list(state) if name.startswith("text_tr")])


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"activation": "tanh"}, CheckpointError, "activation 'tanh'; only the published 'leaky_relu'"),
        ({"max_text_len": 41}, CheckpointError, r"max_text_len should lie in \[3, 40\], got 41"),
        ({"max_text_len": "32"}, CheckpointError, "got '32'"),
    ],
)
def test_settings_that_cannot_be_kept(small, words, config, error, message):
    with pytest.raises(error, match=message):
        small(words, config={**original.CONFIG, **config})


def test_odd_hyper_parameters(small, words):
    with pytest.raises(CheckpointError, match="config should be a mapping, got list"):
        small(words, hyper_parameters={"config": [1]})


def test_objects_of_other_classes_are_not_read(small, words, tmp_path):
    with pytest.raises(CheckpointError, match=r"objects of fractions\.Fraction\).*weights_only=False.*import OUT"):
        small(words, hyper_parameters={"config": original.CONFIG, "rate": fractions.Fraction(1, 3)})


def test_files_that_are_no_checkpoints(words, tmp_path):
    def refused(path: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            import_hacan_checkpoint(path, tmp_path / "run", tokenizer=words)

    refused(tmp_path / "none.ckpt", "can't be read")
    refused(tmp_path, "can't be read")
    (tmp_path / "text.ckpt").write_text("no weights")
    refused(tmp_path / "text.ckpt", "isn't a PyTorch checkpoint")
    whole = original.save_lightning(tmp_path / "whole.ckpt", {"a": torch.ones(99)}).read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "half.ckpt", "isn't a PyTorch checkpoint, or is damaged; copy it again.$")
    torch.save([1], tmp_path / "list.ckpt")
    refused(tmp_path / "list.ckpt", "it holds list")
    torch.save({"model": 1}, tmp_path / "other.ckpt")
    refused(tmp_path / "other.ckpt", "it holds model")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_gives_one_clear_line(zipped, tmp_path):
    path, refused = tmp_path / "x.ckpt", 0
    torch.save({"state_dict": {"a": torch.zeros(3)}}, path, _use_new_zipfile_serialization=zipped)
    for damaged in damaged_copies(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            read_hacan_checkpoint(path)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_tokenizers_that_do_not_fit(small, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"knows 21 word pieces, but the tokenizer of .* has 20"):
        small(save_words(tmp_path / "fewer", original.PIECES[:-1]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"knows 21 word pieces, but the tokenizer of .* has 5"):
        small(tmp_path / "empty")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="has no usable tokenizer"):
        small(tmp_path / "damaged")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"'nobody/nothing' is no folder.*HF_HUB_OFFLINE.*Name a folder"):
        small("nobody/nothing")
    assert not (tmp_path / "run").exists()


def test_folders_with_something_else_are_left_alone(small, words, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"format": "another"}')
    with pytest.raises(ConfigError, match="holds another model"):
        small(words)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        small(words)
