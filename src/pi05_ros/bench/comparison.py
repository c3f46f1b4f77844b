"""One size of π0.5 measured on one or two sides, call by call in turn."""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from pi05_model.config import VIEWS, GemmaConfig, ModelConfig, VisionConfig
from pi05_ros.bench.figures import Figure
from pi05_ros.bench.side import Side, draw_inputs

SizeName = Literal["reference", "67m", "debug"]
SIZES: dict[SizeName, ModelConfig] = {
    "reference": ModelConfig(
        vision=VisionConfig(width=96, depth=3, mlp_dim=384, heads=4, patch=14),
        vlm=GemmaConfig(width=128, depth=4, mlp_dim=512, heads=8, kv_heads=1, head_dim=32),
        expert=GemmaConfig(width=64, depth=4, mlp_dim=256, heads=8, kv_heads=1, head_dim=32),
        vocab_size=2048,
        cameras=VIEWS,
    ),
    "67m": ModelConfig(
        vision=VisionConfig(width=384, depth=8, mlp_dim=1536, heads=6, patch=14),
        vlm=GemmaConfig(width=512, depth=8, mlp_dim=2048, heads=8, kv_heads=1, head_dim=64),
        expert=GemmaConfig(width=256, depth=8, mlp_dim=1024, heads=8, kv_heads=1, head_dim=64),
        vocab_size=20480,
        cameras=VIEWS,
    ),
    "debug": ModelConfig(
        vision=VisionConfig(width=32, depth=1, mlp_dim=64, heads=2, patch=14, image_size=56),
        vlm=GemmaConfig(width=32, depth=2, mlp_dim=64, heads=8, kv_heads=1, head_dim=16),
        expert=GemmaConfig(width=32, depth=2, mlp_dim=64, heads=8, kv_heads=1, head_dim=16),
        vocab_size=512,
        cameras=VIEWS,
    ),
}
"""Sizes that both sides can have: 8 heads, patches of 14 pixels."""

TRAIN_BATCH = 2
PROMPT_TOKENS = 100
"""A prompt with a short subtask and 18 state numbers; the other positions are padding, which lerobot computes too."""
ANSWER_TOKENS = 8
WARM_UP = 2


class Comparison:
    """Measures one size.

    Args:
        name: of the size.
        sides: ours, and the peer if there is one.
        repeats: timed calls of each kind.
        steps: of the flow integration.
        folder: for weights and inputs, which the sides read themselves.
    """

    def __init__(self, name: SizeName, sides: Sequence[Side], repeats: int, steps: int, folder: Path) -> None:
        self.name, self.sides, self.repeats, self.steps, self.folder = name, sides, repeats, steps, folder
        self.config, self.own = SIZES[name], sides[0]

    def figures(self) -> Iterator[list[Figure]]:
        """Measure everything, one kind after another."""
        for what, part in (("sampling", self._sampling), ("training", self._training), ("bfloat16", self._bfloat16)):
            print(f"bench: {self.name}, {what} …", flush=True)
            yield part()

    def _sampling(self) -> list[Figure]:
        self._build("float32", act=True)
        longest = self.config.max_prompt_tokens
        figures = []
        for tokens, target in ((PROMPT_TOKENS, ">= 2"), (longest, "")):
            self._inputs(1, tokens)
            how = f"batch 1, {self.steps} steps, float32, prompt of {tokens} of {longest} tokens"
            figures += self._compared(f"chunk, prompt of {tokens}", "sample", target, how, steps=self.steps)
        return [*figures, *self._agreement(), *self._memory(), *self._planner()]

    def _training(self) -> list[Figure]:
        self._build("float32", act=False)
        self._inputs(TRAIN_BATCH, PROMPT_TOKENS)
        how = f"batch {TRAIN_BATCH}, flow loss into every weight, forward + backward, float32"
        figures = self._compared("training step", "train", ">= 1.3", how)
        if len(self.sides) > 1:
            losses = [side.call("train")["loss"] for side in self.sides]
            figures.append(self._figure("losses differ by", abs(losses[0] - losses[1]), "", "< 1e-4", "same weights"))
        how = "ours; the same with knowledge insulation: no gradient into the VLM"
        return [*figures, self._alone("training step, insulated", "train", how, insulate=True)]

    def _bfloat16(self) -> list[Figure]:
        self._build("bfloat16", act=True, share=False)
        self._inputs(1, PROMPT_TOKENS)
        how = f"batch 1, {self.steps} steps, bfloat16"
        return self._compared("chunk in bfloat16", "sample", "", how, steps=self.steps)

    def _planner(self) -> list[Figure]:
        self._inputs(1, PROMPT_TOKENS)
        how = f"ours; images, prompt and {ANSWER_TOKENS} tokens at most, float32"
        return [self._alone("planner tick", "answer", how, tokens=ANSWER_TOKENS)]

    def _agreement(self) -> list[Figure]:
        if len(self.sides) == 1:
            return []
        chunks = []
        for side in self.sides:
            path = self.folder / f"{side.name}.pt"
            side.call("sample", steps=self.steps, save=str(path))
            chunks.append(torch.load(path, weights_only=True))
        difference = (chunks[0] - chunks[1]).abs().max().item()
        return [self._figure("chunks differ by", difference, "", "< 5e-5", "largest entry; same weights, same inputs")]

    def _memory(self) -> list[Figure]:
        how = "resident after sampling, interpreter and libraries included"
        return [
            self._figure(f"memory, {side.name}", side.call("memory")["resident_mb"], "MB", "", how)
            for side in self.sides
        ]

    def _alone(self, what: str, op: str, how: str, **arguments: Any) -> Figure:
        times = [self.own.call(op, **arguments)["ms"] for _ in range(self.repeats + WARM_UP)][WARM_UP:]
        return self._figure(what, statistics.median(times), "ms", "", how)

    def _compared(self, what: str, op: str, target: str, how: str, **arguments: Any) -> list[Figure]:
        """Time an operation on all sides by turns; return medians and their ratios."""
        wall: list[list[float]] = [[] for _ in self.sides]
        processor: list[list[float]] = [[] for _ in self.sides]
        for turn in range(self.repeats + WARM_UP):
            for index, side in enumerate(self.sides):
                took = side.call(op, **arguments)
                if turn >= WARM_UP:  # the first calls allocate
                    wall[index].append(took["ms"])
                    processor[index].append(took["cpu_ms"])
        figures = []
        for side, times in zip(self.sides, wall, strict=True):
            spread = f"median of {self.repeats}, {min(times):.4g} to {max(times):.4g}; {how}"
            figures.append(self._figure(f"{what}, {side.name}", statistics.median(times), "ms", "", spread))
        if len(self.sides) > 1:
            target = target if self.name != "debug" else ""
            for label, taken, asked in (("times faster", wall, target), ("times less processor time", processor, "")):
                ratio = statistics.median(taken[1]) / statistics.median(taken[0])
                figures.append(self._figure(f"{what}, {label}", ratio, "x", asked, "lerobot / ours, medians"))
        return figures

    def _build(self, dtype: str, act: bool, share: bool = True) -> None:
        """Make networks; the peer's random weights serve both sides, so it goes first."""
        shared = share and len(self.sides) > 1
        weights = str(Path(tempfile.mkdtemp(dir=self.folder)) / "peer") if shared else ""
        for side in reversed(self.sides):
            side.call("build", config=self.config.to_dict(), dtype=dtype, weights=weights, act=act)

    def _inputs(self, batch: int, prompt_tokens: int) -> None:
        path = self.folder / "inputs.pt"
        draw_inputs(path, self.config, batch, prompt_tokens)
        for side in self.sides:
            side.call("inputs", path=str(path))

    def _figure(self, name: str, value: float, unit: str, target: str, how: str) -> Figure:
        return Figure(f"{self.name}: {name}", value, unit, target, how)
