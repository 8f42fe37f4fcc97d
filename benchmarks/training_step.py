"""A whole training step of HADA against the same step with a full graph, as the original's code takes it.

    python benchmarks/training_step.py

20 pairs, 577 + 36 image tokens and 30 + 30 text tokens of width 768, mapped to 512, 4 heads of 512, 512 fused, a
queue of 64,000: both encoders, their momentum update and the momentum encoders, contrast with distillation,
matching, the backward pass and AdamW. The reference (see full_graph.py) computes all nodes by edge lists, keeps its
queue in float32 and joins it with the batch before each of its four products, moves the momentum encoders parameter
by parameter, and looks for negatives item by item; all in float32. Neither drops anything, so that both losses are
compared, before both are timed in turn by the processor time of one thread. Memory is the growth of a fresh
process's peak (Linux), queue and features not counted; the last lines are what `chunk_size` makes of a batch of 80.
Needs torch-geometric.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from full_graph import FullGraphTower
from measuring import Step, added_peak, clock_of, in_fresh_process, measure, ratio
from torch import Tensor, nn

from modalloy.fusion import EncoderFeatures, InputShape, SplitFeatures, TowerConfig, TowerFuser
from modalloy.memory import keep_freed_memory
from modalloy.training.fusion_module import FusionModule
from modalloy.training.fusion_training import FusionTraining
from modalloy.training.pair_features import PairBatch

BATCH, QUEUE, IMAGE_TOKENS, TEXT_TOKENS, WIDTH = 20, 64_000, (577, 36), (30, 30), 768
SHAPES = [InputShape(256, WIDTH, WIDTH), InputShape(768, WIDTH, WIDTH)]
TOWERS = TowerConfig(output_dim=512, dropout=0.0, start="random", activation="none")
DISTILLATION, MOMENTUM = 0.4, 0.995
GOAL, MEMORY_GOAL = 5.0, 0.5
SYSTEMS = ("full graph", "ours float32", "ours bfloat16")


class Ours(FusionModule):
    """The package's module without a trainer, after its first epoch."""

    def log_dict(self, *_: object, **__: object) -> None:
        """Logs nowhere."""

    def _distillation_share(self) -> float:
        return DISTILLATION


def pairs(size: int, device: str) -> PairBatch:
    """Random features; two captions of one image are among them."""
    torch.manual_seed(1)

    def features(lengths: tuple[int, ...]) -> list[EncoderFeatures]:
        return [
            EncoderFeatures(
                F.normalize(torch.randn(size, shape.dim), dim=-1),
                torch.randn(size, length, WIDTH),
                torch.ones(size, length, dtype=torch.bool),
            ).to(torch.device(device))
            for shape, length in zip(SHAPES, lengths, strict=True)
        ]

    images = torch.arange(size).clamp(min=1).to(device)
    return PairBatch(features(IMAGE_TOKENS), features(TEXT_TOKENS), images, images)


def past(dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The queue's vectors and images."""
    torch.manual_seed(2)
    image, text = F.normalize(torch.randn(2, QUEUE, dim), dim=-1)
    return image, text, torch.arange(QUEUE) % 29_000


def module(chunk_size: int | None = None) -> Ours:
    torch.manual_seed(0)
    training = FusionTraining(queue_size=QUEUE, momentum=MOMENTUM, chunk_size=chunk_size)
    ours = Ours(TowerFuser(TOWERS, SHAPES), training, 1000, object.__new__(SplitFeatures))
    image, text, images = past(ours.fuser.dim)
    ours.queue.push(image, text, images, images)
    return ours


def ours(precision: str, size: int, chunk_size: int | None, device: str) -> Callable[[], Tensor]:
    """A step of this package; gives its loss."""
    model, batch = module(chunk_size).to(device), pairs(size, device)
    optimizer = model.configure_optimizers()["optimizer"]

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        model.on_train_batch_end()
        return loss.detach()

    return step


class FullGraph(nn.Module):
    """The step as the original's code takes it, from the same weights, queue and batch."""

    def __init__(self) -> None:
        super().__init__()
        fuser = module().fuser
        self.towers = nn.ModuleDict({name: FullGraphTower(tower) for name, tower in fuser.towers.items()})
        self.slow = copy.deepcopy(self.towers).requires_grad_(False)
        self.matching = fuser.matching.linear
        self.temperature = nn.Parameter(torch.tensor(FusionTraining.temperature))
        image, text, images = past(fuser.fused_dim)
        self.register_buffer("image_queue", image.T.contiguous())
        self.register_buffer("text_queue", text.T.contiguous())
        self.register_buffer("queued", images[None])
        self.place = 0

    def loss(self, batch: PairBatch) -> Tensor:
        image, text = self.towers["image"](batch.image), self.towers["text"](batch.text)
        with torch.no_grad():
            for kept, current in zip(self.slow.parameters(), self.towers.parameters(), strict=True):
                kept.copy_(kept * MOMENTUM + current * (1 - MOMENTUM))
            slow_image, slow_text = self.slow["image"](batch.image), self.slow["text"](batch.text)
            image_keys = torch.cat([slow_image.T, self.image_queue.clone()], dim=1)
            text_keys = torch.cat([slow_text.T, self.text_queue.clone()], dim=1)
            same = (batch.images[:, None] == torch.cat([batch.images[None], self.queued], dim=1)).float()
            targets = same / same.sum(1, keepdim=True)
            soft = [
                DISTILLATION * F.softmax(query @ keys / self.temperature, dim=1) + (1 - DISTILLATION) * targets
                for query, keys in ((slow_image, text_keys), (slow_text, image_keys))
            ]
        contrast = [
            -(F.log_softmax(query @ keys / self.temperature, dim=1) * target).sum(1).mean()
            for query, keys, target in ((image, text_keys, soft[0]), (text, image_keys, soft[1]))
        ]
        self._enqueue(slow_image, slow_text, batch.images)
        return sum(contrast) / 2 + self._matching(image, text, batch.images)

    def _matching(self, image: Tensor, text: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            scores = (image @ text.T).masked_fill(images[:, None] == images[None], -torch.inf)
        texts = torch.stack([text[scores[row].argmax()] for row in range(len(image))])
        others = torch.stack([image[scores[:, row].argmax()] for row in range(len(image))])
        left, right = torch.cat([image, image, others]), torch.cat([text, texts, text])
        logits = self.matching(torch.cat([left, right, (left - right).abs(), left * right], dim=1)).squeeze(1)
        labels = torch.cat([torch.ones(len(image)), torch.zeros(2 * len(image))]).to(logits.device)
        return F.binary_cross_entropy_with_logits(logits, labels)

    def _enqueue(self, image: Tensor, text: Tensor, images: Tensor) -> None:
        places = slice(self.place, self.place + len(images))
        self.image_queue[:, places], self.text_queue[:, places] = image.T, text.T
        self.queued[:, places] = images
        self.place = (self.place + len(images)) % QUEUE


def full_graph(size: int, device: str) -> Callable[[], Tensor]:
    """A step of the reference; gives its loss."""
    model, batch = FullGraph().to(device), pairs(size, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.02)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def step_of(system: str, device: str, size: int = BATCH, chunk_size: int | None = None) -> Callable[[], Tensor]:
    if system == "full graph":
        return full_graph(size, device)
    return ours(system.split()[1], size, chunk_size, device)


def profile(step: Step) -> str:
    """The operations that take most of a step."""
    step()
    with torch.profiler.profile() as profiler:
        step()
    return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=40)


def peaks(device: str) -> dict[str, float]:
    """MiB that a step adds, each in a fresh process."""
    cases = {
        **{system: (system, BATCH, 0) for system in SYSTEMS},
        "ours float32, batch 80": (SYSTEMS[1], 80, 0),
        "ours float32, batch 80 in chunks of 20": (SYSTEMS[1], 80, 20),
    }
    return {
        name: in_fresh_process(__file__, "--device", device, "--peak-of", *map(str, case))
        for name, case in cases.items()
    }


def main() -> None:
    """Print times, ratios and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    parser.add_argument("--profile", action="store_true", help="the operations of our float32 step, and nothing else")
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out")
    parser.add_argument("--keep-freed-memory", action="store_true", help="as our command line does; for both")
    parser.add_argument("--peak-of", nargs=3, metavar=("SYSTEM", "BATCH", "CHUNK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use; this one finds none")
    if options.peak_of:
        system, size, chunk = options.peak_of[0], int(options.peak_of[1]), int(options.peak_of[2]) or None
        print(added_peak(step_of(system, options.device, size, chunk), options.device))
        return
    if options.keep_freed_memory:
        keep_freed_memory()
    if options.profile:
        print(profile(step_of(SYSTEMS[1], options.device)))
        return
    steps = {system: step_of(system, options.device) for system in SYSTEMS}
    losses = {system: step().item() for system, step in steps.items()}
    for system in SYSTEMS[1:]:
        torch.testing.assert_close(losses[system], losses[SYSTEMS[0]], rtol=5e-3, atol=5e-3)
    # The comparison of the losses was the warm-up.
    times = measure(steps, options.rounds, clock_of(options.device), warm_up=False)
    result = {
        "losses": losses,
        "seconds": {system: statistics.median(values) for system, values in times.items()},
        "ratios": {system: ratio(times[SYSTEMS[0]], times[system]) for system in SYSTEMS[1:]},
        "peak_mib": {} if options.no_memory else peaks(options.device),
    }
    print(json.dumps(result) if options.json else table(result))


def table(result: dict[str, dict[str, float]]) -> str:
    lines = [
        f"{system:13} loss {value:.4f}, {result['seconds'][system]:.2f} s" for system, value in result["losses"].items()
    ]
    lines += [f"{system:13} {value:.1f}x the full graph (goal {GOAL}x)" for system, value in result["ratios"].items()]
    if not result["peak_mib"]:
        return "\n".join(lines)
    reference = result["peak_mib"][SYSTEMS[0]]
    lines.append(f"peak memory (goal: at most {MEMORY_GOAL} of the full graph's)")
    lines += [f"  {name:40} {value:6.0f} MiB, {value / reference:.2f}" for name, value in result["peak_mib"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
