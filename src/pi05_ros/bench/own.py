"""This project's π0.5 as one side of `pi05 bench model`: a process that answers what `peer_lerobot` answers."""

from typing import Any

import torch
from torch import Tensor

from pi05_model.backbone import Backbone
from pi05_model.batch import ModelInput, Text, TrainBatch
from pi05_model.build import build
from pi05_model.checkpoint import load_network
from pi05_model.config import ModelConfig
from pi05_model.engine import Engine
from pi05_model.flow_policy import FlowPolicy
from pi05_model.interchange.foreign import Choices
from pi05_model.interchange.importer import import_checkpoint
from pi05_model.layers import pack_for_cpu
from pi05_ros.bench.peer_lerobot import memory, serve, timed

LARGE = 500_000_000
"""Parameters from which packing is left out: it keeps the packed and the plain weights of a layer for a moment."""


class OwnSide:
    """Builds a network, keeps inputs, times calls."""

    def build(self, config: dict[str, Any], dtype: str, weights: str, act: bool) -> dict[str, float]:
        """Make a network.

        Args:
            config: `ModelConfig.to_dict()` of a π0.5.
            dtype: "float32" or "bfloat16", of activations, and of the weights of a network that acts.
            weights: folder that lerobot saved; empty: random weights.
            act: prepare the weights as `Pi05Policy.load` does. Otherwise the network can be trained.
        """
        network = make_network(ModelConfig.from_dict(config), getattr(torch, dtype), weights, act)
        count = sum(p.numel() for p in network.parameters())
        if act and count < LARGE:
            pack_for_cpu(network)
        self._network, self._engine = network, Engine(network)
        return {"parameters": count}

    def inputs(self, path: str) -> None:
        """Load the tensors that `draw_inputs` stored."""
        given = torch.load(path, weights_only=True)
        causal = torch.zeros_like(given["token_mask"])
        text = Text(given["tokens"], given["token_mask"], causal, causal)
        self._observation = ModelInput(given["images"], given["image_mask"], text)
        self._given = given

    def sample(self, steps: int, save: str = "") -> dict[str, float]:
        """Sample a chunk."""

        def call() -> None:
            self._chunk = self._engine.sample_actions(self._observation, self._given["noise"], steps)

        took = timed(call)
        if save:
            torch.save(self._chunk, save)
        return took

    def answer(self, tokens: int) -> dict[str, float]:
        """Decode a text answer of at most so many tokens: one tick of the planner."""
        answers: list[list[int]] = []
        took = timed(lambda: answers.extend(self._engine.generate(self._observation, max_tokens=tokens)))
        return {**took, "tokens": len(answers[0])}

    def train(self, insulate: bool = False) -> dict[str, float]:
        """Do one forward and backward pass of the flow loss; gradients are dropped before, outside the time."""

        def call() -> None:
            losses = compute(batch, 1.0, insulate, given["noise"], given["time"])
            self._loss: Tensor = losses["flow"]
            losses["total"].backward()  # type: ignore[no-untyped-call]

        given, inputs, network = self._given, self._observation, self._network
        assert isinstance(network, FlowPolicy) and inputs.images is not None
        compute = network.losses
        real = torch.arange(given["actions"].shape[-1]) < given["action_dim"]
        mask = real.expand_as(given["actions"])
        batch = TrainBatch(inputs.images, inputs.image_mask, None, inputs.text, given["actions"], mask)
        network.zero_grad(set_to_none=True)
        return {**timed(call), "loss": self._loss.item()}


def make_network(config: ModelConfig, dtype: torch.dtype, weights: str, act: bool) -> Backbone:
    """Return a network: lerobot's weights, brought here as `pi05 checkpoint import` does, or random ones."""
    stored = dtype if act else torch.float32
    torch.manual_seed(0)
    if not weights:
        return build(config, dtype, stored)
    sizes = {"vlm": {}, "expert": {}, "vision": {"num_attention_heads": config.vision.heads}}
    import_checkpoint(weights, f"{weights}_ours", Choices(sizes=sizes))
    return load_network(f"{weights}_ours", dtype, stored)


def main() -> None:
    """Serve."""
    side = OwnSide()
    calls = (side.build, side.inputs, side.sample, side.answer, side.train, memory)
    serve({call.__name__: call for call in calls})


if __name__ == "__main__":
    main()
