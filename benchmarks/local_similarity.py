"""HACAN's cross-layer scores of a batch against a loop over captions, as the original's code takes it.

    python benchmarks/local_similarity.py

128 images x 128 captions of 8 to 32 words, 49 high-level and 49, or 196, mid-level regions, 768 wide: focal attention
between the high levels, and SCAN's across levels. The reference cuts each caption to its length, repeats it for every
image and makes the attended vectors, in float32. Both are checked to give the same scores, then timed in turn by the
processor time of one thread; ratios are medians over the rounds, which are one alone for the passes with a backward:
there the reference takes many times as long, and its one backward, which does the same work for any gradient, is
compared with both of ours. The backward is that of HACAN's local loss, whose gradient reaches three pairs of a batch
at most for each of its own, and that of a gradient for every pair. Memory is the growth of a fresh process's peak
(Linux). "candidates" are 20 images for each caption, in float32; their ratio is to the reference's time for as many
pairs.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measuring import Step, added_peak, clock_of, in_fresh_process, measure, ratio
from torch import Tensor

from modalloy.align import Tokens, candidate_cross_layer_similarity, cross_layer_similarity, hardest_negatives
from modalloy.align.cross_layer import Levels
from modalloy.align.local_losses import local_hinge
from modalloy.memory import keep_freed_memory

HIGH, SHORTEST, LONGEST, CANDIDATES = 49, 8, 32, 20
PASSES = ("forward", "local loss", "dense backward")
SYSTEMS = ("caption loop", "ours float32", "ours bfloat16")
GOALS = {
    ("ours float32", "forward"): 4.0,
    ("ours bfloat16", "forward"): 8.0,
    ("ours float32", "local loss"): 3.0,
    ("ours float32", "dense backward"): 3.0,
}


def batch(size: int, regions: int, width: int, device: str, grad: bool) -> tuple[Levels, Levels]:
    """Random tokens of both levels."""
    torch.manual_seed(0)
    words = torch.arange(LONGEST) < torch.randint(SHORTEST, LONGEST + 1, (size, 1))

    def tokens(mask: Tensor) -> Tokens:
        values = torch.randn(*mask.shape, width).to(device)
        return Tokens(values.requires_grad_(grad), mask.to(device))

    def grid(length: int) -> Tokens:
        return tokens(torch.ones(size, length, dtype=torch.bool))

    return {"high": grid(HIGH), "mid": grid(regions)}, {"high": tokens(words), "mid": tokens(words)}


def caption_loop(images: Levels, captions: Levels) -> Tensor:
    """Focal attention between the high levels, SCAN's across levels, one caption after the other."""
    return (
        loop_term(images["high"], captions["high"], focal=True)
        + loop_term(images["high"], captions["mid"])
        + loop_term(images["mid"], captions["high"])
    )


def loop_term(images: Tokens, captions: Tokens, focal: bool = False) -> Tensor:
    columns = []
    for caption, length in zip(captions.values, captions.mask.sum(1).tolist(), strict=True):
        words = caption[:length].repeat(len(images), 1, 1)
        affinity = F.leaky_relu(torch.bmm(images.values, words.mT), 0.1)
        affinity = affinity / (affinity.norm(dim=2, keepdim=True) + 1e-8)
        weights = (9 * affinity.mT.contiguous()).softmax(2)
        if focal:
            weights = focus(weights)
        attended = torch.bmm(weights, images.values)
        norms = words.norm(dim=2) * attended.norm(dim=2)
        columns.append(((words * attended).sum(2) / norms.clamp(min=1e-8)).mean(1))
    return torch.stack(columns, dim=1)


def focus(weights: Tensor) -> Tensor:
    """BFAN's "prob"."""
    roots = weights.sqrt()
    excess = weights * roots.sum(2, keepdim=True) - (weights * roots).sum(2, keepdim=True)
    kept = weights * (excess > 0).float()
    return kept / kept.sum(2, keepdim=True)


def step(system: str, kind: str, options: argparse.Namespace, regions: int) -> Callable[[], Any]:
    """One pass of a system; the forward alone gives its scores."""
    levels = batch(options.size, regions, options.width, options.device, grad=kind != "forward")
    score = caption_loop if system == SYSTEMS[0] else cross_layer_similarity
    nobody = torch.eye(options.size, dtype=torch.bool, device=options.device)
    weights = torch.randn(options.size, options.size, device=options.device)
    leaves = [tokens.values for modality in levels for tokens in modality.values()]

    def forward() -> Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=system == SYSTEMS[2]):
            return score(*levels)

    def run() -> object:
        if kind == "forward":
            with torch.no_grad():
                return forward()
        scores = forward()
        if kind == "local loss":
            loss = local_hinge(scores, hardest_negatives(scores, nobody), reduction="sum")
        else:
            loss = (scores * weights).sum()
        return torch.autograd.grad(loss, leaves)

    return run


def candidates(options: argparse.Namespace, regions: int) -> Step:
    images, captions = batch(options.size, regions, options.width, options.device, grad=False)
    rows = torch.rand(options.size, options.size).argsort(1)[:, :CANDIDATES].to(options.device)

    def run() -> Tensor:
        with torch.no_grad():
            return candidate_cross_layer_similarity(images, captions, rows, "text_to_image")

    return run


def compare(options: argparse.Namespace, regions: int) -> dict[str, Any]:
    clock = clock_of(options.device)
    steps = {system: step(system, "forward", options, regions) for system in SYSTEMS}
    expected = steps[SYSTEMS[0]]()
    result: dict[str, Any] = {"error": {}, "seconds": {}, "ratios": {}, "peak_mib": {}}
    for system, tolerance in zip(SYSTEMS[1:], (2e-3, 2e-2), strict=True):
        # A focal weight that is equal to its threshold but for rounding may stay or go.
        result["error"][system] = (steps[system]() - expected).abs().max().item()
        torch.testing.assert_close(steps[system](), expected, rtol=0, atol=tolerance)
    times: dict[str, list[float]] = {}
    for kind in PASSES:
        steps = {system: step(system, kind, options, regions) for system in SYSTEMS}
        if kind == "forward":
            steps["candidates"] = candidates(options, regions)
        rounds = options.rounds if kind == "forward" else options.backward_rounds
        for name in [name for name in steps if name != SYSTEMS[0]]:  # which was run above, and is slow
            steps[name]()
        if kind == PASSES[2]:
            del steps[SYSTEMS[0]]
        times = {SYSTEMS[0]: times[SYSTEMS[0]]} if kind == PASSES[2] else {}
        times |= measure(steps, rounds, clock, warm_up=False)
        result["seconds"][kind] = {name: statistics.median(each) for name, each in times.items()}
        result["ratios"][kind] = {
            name: ratio(times[SYSTEMS[0]], times[name]) * (CANDIDATES / options.size if name == "candidates" else 1)
            for name in times
            if name != SYSTEMS[0]
        }
        if not options.no_memory:
            arguments = ("--size", options.size, "--width", options.width, "--device", options.device)
            result["peak_mib"][kind] = {
                system: in_fresh_process(__file__, *map(str, arguments), "--peak-of", system, kind, str(regions))
                for system in SYSTEMS[kind == PASSES[2] :]
            }
    return result


def show(regions: int, result: dict[str, Any]) -> None:
    errors = ", ".join(f"{system} {error:.1e}" for system, error in result["error"].items())
    print(f"\n{regions} mid-level regions; largest differences: {errors}")
    for kind in PASSES:
        for system, seconds in result["seconds"][kind].items():
            line = f"  {kind:14} {system:13} {1000 * seconds:7.0f} ms"
            if system != SYSTEMS[0]:
                line += f", {result['ratios'][kind][system]:5.1f}x the loop"
            if (system, kind) in GOALS:
                held = result["ratios"][kind][system] >= GOALS[system, kind]
                line += f" (goal {GOALS[system, kind]:g}x: {'held' if held else 'missed'})"
            if system in result["peak_mib"].get(kind, {}):
                line += f", {result['peak_mib'][kind][system]:.0f} MiB"
            print(line, flush=True)


def main() -> None:
    """Print times, ratios and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="images, and captions")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--regions", type=int, nargs="+", default=[49, 196], help="of the mid level")
    parser.add_argument("--rounds", type=int, default=3, help="of the forward")
    parser.add_argument("--backward-rounds", type=int, default=1, help="of the passes with a backward")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out")
    parser.add_argument("--peak-of", nargs=3, metavar=("SYSTEM", "PASS", "REGIONS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use; this one finds none")
    if options.peak_of:
        system, kind, regions = options.peak_of
        print(added_peak(step(system, kind, options, int(regions)), options.device))
        return
    keep_freed_memory()  # as the command line does; for both
    results = {}
    for regions in options.regions:
        results[regions] = compare(options, regions)
        if not options.json:
            show(regions, results[regions])
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
