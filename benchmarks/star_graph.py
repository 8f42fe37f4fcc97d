"""The star-graph GATv2 layer against PyG's GATv2Conv on HADA's full graph, and against its floor.

    python benchmarks/star_graph.py

20 graphs of 577 + 36 tokens, 512 wide, 4 heads of 512. The reference is the layer as the original used
it: every token to both CLS nodes, the CLS nodes to each other, a self-loop on every node, one edge
feature, all nodes computed, in float32. The floor is the bare `torch.mm` of W1 x for all tokens (25.7
GFLOP); for the backward too, that and its two gradients. Both sides are checked to give the same CLS
outputs, then all are timed in turn, round after round; ratios are medians over the rounds. On a busy
machine, `--threads 1 --clock cpu` leaves out the time taken by others. Memory is the growth of a fresh
process's peak (Linux). Needs torch-geometric.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from measuring import Step, added_peak, in_fresh_process, measure, ratio
from torch import Tensor
from torch_geometric.nn import GATv2Conv

from modalloy.fusion.star_graph import StarGATv2

GRAPHS, LENGTHS, WIDTH, HEADS = 20, (577, 36), 512, 4
TOKENS = sum(LENGTHS)
TARGETS = [0, LENGTHS[0]]
PASSES = ("forward", "forward+backward")
GOALS = {
    ("float32", "forward"): 2.5,
    ("float32", "forward+backward"): 1.6,
    ("bfloat16", "forward"): 8.0,
    ("bfloat16", "forward+backward"): 3.0,
}


def full_graph() -> tuple[Tensor, Tensor]:
    """Edges of the batch of graphs and their attributes: own encoder 0.9, CLS to CLS 1.1, crossing 0.7."""
    edges, attributes = [], []
    for encoder, start in enumerate(TARGETS):
        for node in range(start, start + LENGTHS[encoder]):
            for target in TARGETS:
                edges.append((node, target))
                attributes.append(1.1 if node in TARGETS else 0.9 if target == start else 0.7)
    one = torch.tensor(edges).T
    batch = torch.cat([one + graph * TOKENS for graph in range(GRAPHS)], dim=1)
    return batch, torch.tensor(attributes).repeat(GRAPHS).unsqueeze(1)


def layers() -> tuple[GATv2Conv, StarGATv2]:
    torch.manual_seed(0)
    reference = GATv2Conv(WIDTH, WIDTH, heads=HEADS, edge_dim=1)
    ours = StarGATv2(WIDTH, HEADS)
    ours.load_state_dict({name: value for name, value in reference.state_dict().items() if "edge" not in name})
    return reference, ours


def step(system: str, direction: str) -> Step:
    """One pass of "PyG", "ours float32", "ours bfloat16", "floor float32" or "floor bfloat16"."""
    torch.manual_seed(0)
    name, _, precision = system.partition(" ")
    backward = direction == "forward+backward"
    tokens = torch.randn(GRAPHS, TOKENS, WIDTH, requires_grad=backward)
    reference, ours = layers()
    if name == "floor":
        return floor(tokens.detach().flatten(0, 1), getattr(torch, precision), backward)
    if name == "PyG":
        edges, attributes = full_graph()
        return lambda: run(
            lambda: reference(tokens.flatten(0, 1), edges, attributes),
            [tokens, *reference.parameters()],
            backward,
        )
    mask = torch.ones(GRAPHS, TOKENS, dtype=torch.bool)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return ours(tokens, mask, TARGETS)

    return lambda: run(forward, [tokens, *ours.parameters()], backward)


def run(forward: Callable[[], Tensor], inputs: list[Tensor], backward: bool) -> None:
    with contextlib.nullcontext() if backward else torch.no_grad():
        output = forward()
    if backward:
        torch.autograd.grad(output, inputs, torch.ones_like(output))


def floor(tokens: Tensor, dtype: torch.dtype, backward: bool) -> Step:
    tokens = tokens.to(dtype)
    weight = torch.randn(HEADS * WIDTH, WIDTH).to(dtype)
    gradient = torch.randn(len(tokens), HEADS * WIDTH).to(dtype)
    if not backward:
        return lambda: torch.mm(tokens, weight.T)
    return lambda: (torch.mm(tokens, weight.T), torch.mm(gradient.T, tokens), torch.mm(gradient, weight))


def check_equal() -> float:
    """Largest difference at the CLS nodes, with the edge attributes set to zero: ours has no edge term."""
    torch.manual_seed(0)
    tokens = torch.randn(GRAPHS, TOKENS, WIDTH)
    reference, ours = layers()
    edges, attributes = full_graph()
    with torch.no_grad():
        theirs = reference(tokens.flatten(0, 1), edges, attributes * 0).view(GRAPHS, TOKENS, -1)[:, TARGETS]
        mine = ours(tokens, torch.ones(GRAPHS, TOKENS, dtype=torch.bool), TARGETS)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    return (mine - theirs).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: of one thread, so --threads 1")
    parser.add_argument("--peak-of", nargs=2, metavar=("SYSTEM", "PASS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(added_peak(step(*options.peak_of)))
        return
    if options.clock == "cpu" and options.threads != [1]:
        parser.error("--clock cpu counts the time of all threads together: use it with --threads 1")
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    print(f"same CLS outputs as PyG: largest difference {check_equal():.1e}")
    names = ["PyG", "ours float32", "floor float32", "ours bfloat16", "floor bfloat16"]
    for threads in options.threads:
        torch.set_num_threads(threads)
        for direction in PASSES:
            times = measure({name: step(name, direction) for name in names}, options.rounds, clock)
            print(f"\n{direction}, {threads} thread{'s' * (threads > 1)}, medians of {options.rounds} rounds")
            for name in names:
                print(f"  {name:15} {1000 * statistics.median(times[name]):7.0f} ms")
            for precision in ("float32", "bfloat16"):
                ours = times[f"ours {precision}"]
                gain, over = ratio(times["PyG"], ours), ratio(ours, times[f"floor {precision}"])
                goal = GOALS[precision, direction]
                print(
                    f"  {precision:8} {gain:5.1f}x PyG (goal {goal}x), {over:.2f}x the floor's time",
                    flush=True,
                )
    print("\npeak memory over the inputs and weights (goal: half of PyG's)")
    for direction in PASSES:
        peaks = {
            name: in_fresh_process(__file__, "--peak-of", name, direction)
            for name in ("PyG", "ours float32", "ours bfloat16")
        }
        print(
            f"  {direction:16} " + ", ".join(f"{name} {peak:.0f} MiB" for name, peak in peaks.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
