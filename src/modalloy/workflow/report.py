"""Gathering what a run's `report.html` shows."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from modalloy.encoders import Encoder
from modalloy.evaluation import Ranks, ScoreFunction, recall_curve
from modalloy.files import read_json
from modalloy.fusion import FeatureSet, SplitFeatures, TowerFuser
from modalloy.fusion.hada import HadaTower
from modalloy.fusion.rotation import uncut
from modalloy.report import AttentionExample, QueryExample, ReportContent, WordExample, write_report
from modalloy.workflow.word_attention import word_examples

if TYPE_CHECKING:
    from modalloy.workflow.run import Run

_EXAMPLES_OF_EACH_KIND = 4
_ATTENTIONS = 6
_SHOWN_RESULTS = 5
_CURVE_CUTOFFS = tuple(range(1, 51))
_ATTENTION_NOTE = "Attention is the mean over the heads and over the summary tokens that receive it."
_NOTES = (
    f"The example queries are the {_EXAMPLES_OF_EACH_KIND} that gain most ranks over the best input, the "
    f"{_EXAMPLES_OF_EACH_KIND} that lose most, and {_EXAMPLES_OF_EACH_KIND} drawn at random, in this order.",
    "Inputs are aligned once; the spread of a trained fusion is over its seeds.",
)


def write_run_report(run: "Run", report: Mapping[str, Any]) -> None:
    """Writes `report.html` into a run directory.

    Args:
        run: a run whose systems are fitted.
        report: its results, as `Run.evaluate` gives them.
    """
    attentions = _attentions(run)
    notes = [*_NOTES, *([_ATTENTION_NOTE] if attentions else [])]
    if "regime" in report:
        notes.append(report["regime"]["sentence"])
    content = ReportContent(
        title=f"modalloy run {run.folder.name}",
        report=report,
        recall_curves={name: _curve(ranks[0]) for name, ranks in run.ranks.items()},
        training=_training(run),
        examples=_examples(run, report["best_input"]),
        attentions=attentions,
        words=_words(run),
        provenance=_provenance(run),
        notes=notes,
    )
    write_report(run.folder / "report.html", content)


def _curve(ranks: Ranks) -> dict[str, Sequence[float]]:
    curve = recall_curve(ranks, _CURVE_CUTOFFS)
    return {"image_to_text": curve.image_to_text, "text_to_image": curve.text_to_image}


def _training(run: "Run") -> dict[str, list[dict[str, Any]]]:
    """The history of every fit of this configuration; the folder may hold those of others, too."""
    curves = {}
    for position, each in enumerate(run.config.inputs):
        metrics = run.folder / "inputs" / str(position + 1) / "metrics.jsonl"
        if each.encoder is None and metrics.exists():
            curves[each.name] = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    wanted = {(training, f"seed-{seed}") for training in run.config.fusion.trainings for seed in run.config.seeds}
    for record in sorted(run.folder.glob("fits/*/*/fit.json")):
        training, seed = record.parts[-3:-1]
        if (training, seed) in wanted:
            curves[f"{training}, {seed}"] = read_json(record)["history"]
    return curves


def _examples(run: "Run", best_input: str) -> list[QueryExample]:
    """Captions of the test split as queries, answered by each input and by the delivered alloy."""
    test, delivered = run.test, run.delivered
    before = run.ranks[best_input][0].text_to_image
    after = run.ranks[delivered.name][delivered.seed_position].text_to_image
    # Logarithms, since from rank 2 to rank 1 is more than from 200 to 199.
    by_gain = (before.log() - after.log()).argsort(descending=True, stable=True).tolist()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(by_gain), generator=generator).tolist()
    kinds = (by_gain, by_gain[::-1], drawn)
    chosen = dict.fromkeys(caption for kind in kinds for caption in kind[:_EXAMPLES_OF_EACH_KIND])
    scores: dict[str, ScoreFunction] = {
        each.name: score for each, score in zip(run.config.inputs, test.input_scores(), strict=True)
    }
    scores[delivered.name] = test.scores(delivered.fuser)
    ranks = {name: run.ranks[name][0] for name in scores} | {
        delivered.name: run.ranks[delivered.name][delivered.seed_position]
    }
    return [_example(test, caption, scores, ranks) for caption in chosen]


def _example(
    test: SplitFeatures, caption: int, scores: Mapping[str, ScoreFunction], ranks: Mapping[str, Ranks]
) -> QueryExample:
    manifest = test.paired.manifest
    paths = [manifest.absolute(manifest[row]) for row in test.image_rows.tolist()]
    results = {}
    for name, score in scores.items():
        column = score.score(slice(0, len(paths)), slice(caption, caption + 1))[:, 0]
        best = column.argsort(descending=True, stable=True)[:_SHOWN_RESULTS].tolist()
        results[name] = [paths[image] for image in best]
    return QueryExample(
        query=manifest.captions[int(test.caption_rows[caption])],
        truth=paths[int(test.caption_image[caption])],
        results=results,
        ranks={name: float(rank.text_to_image[caption]) for name, rank in ranks.items()},
    )


def _attentions(run: "Run") -> list[AttentionExample]:
    """The attention on some drawn test pictures and their first captions, if the alloy has a graph."""
    fuser, test = uncut(run.delivered.fuser), run.test
    if not isinstance(fuser, TowerFuser) or not isinstance(fuser.towers["image"], HadaTower):
        return []
    return [_attention(run, image, caption) for image, caption in _drawn_pairs(test)]


def _words(run: "Run") -> list[WordExample]:
    """Where the local branches of inputs find the words of the same captions."""
    encoders = {each.name: encoder for each, encoder in zip(run.config.inputs, run.encoders, strict=True)}
    return word_examples(encoders, run.test, _drawn_pairs(run.test))


def _drawn_pairs(test: SplitFeatures) -> list[tuple[int, int]]:
    """Some drawn test pictures and their first captions, by their places."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randperm(len(test.image_rows), generator=generator)[:_ATTENTIONS].tolist()
    return [
        (image, int((test.caption_image == image).nonzero()[0]))
        for image in images
        if bool((test.caption_image == image).any())
    ]


def _attention(run: "Run", image: int, caption: int) -> AttentionExample:
    test = run.test
    manifest, features = test.paired.manifest, test.paired
    image_row, caption_row = int(test.image_rows[image]), int(test.caption_rows[caption])
    text = manifest.captions[caption_row]
    image_maps, word_weights = {}, {}
    seen = zip(
        run.config.inputs,
        run.encoders,
        _token_weights(uncut(run.delivered.fuser), features.image, image_row),
        _token_weights(uncut(run.delivered.fuser), features.text, caption_row),
        strict=True,
    )
    for each, encoder, image_weights, text_weights in seen:
        grid = encoder.token_grid()
        if grid is not None:
            image_maps[each.name] = image_weights[1 : 1 + grid[0] * grid[1]].view(grid)
        words = encoder.token_texts(text)
        if words is not None:
            word_weights[each.name] = list(zip(words, text_weights.tolist(), strict=True))
    return AttentionExample(manifest.absolute(manifest[image_row]), text, image_maps, word_weights)


def _token_weights(fuser: Any, features: FeatureSet, row: int) -> list[Float[Tensor, " tokens"]]:
    """Per encoder, the attention that each of an item's tokens gets, averaged over heads and targets."""
    tower = fuser.towers[features.modality]
    attention = tower.attention(features.batch(torch.tensor([row])))
    return [weights[0].mean(dim=(0, 1)) for weights in attention]


def _provenance(run: "Run") -> dict[str, str]:
    manifest = run.collection.manifest
    return {
        "configuration": yaml.safe_dump(run.config.to_dict(), sort_keys=False),
        "collection": f"{run.config.collection} (SHA-256 {manifest.fingerprint}): {manifest.counts()}",
        **{
            f"{each.name}, {modality}": _described(encoder, modality)
            for each, encoder in zip(run.config.inputs, run.encoders, strict=True)
            for modality in encoder.modalities
        },
        "PyTorch": torch.__version__,
    }


def _described(encoder: Encoder, modality: Any) -> str:
    fingerprint = encoder.fingerprint(modality)
    return f"{fingerprint.name}, {fingerprint.revision}, weights {fingerprint.weights_sha256}"
