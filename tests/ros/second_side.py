"""A stand-in for the peer that CI does not have: this project's network again, its weights saved under lerobot's names.

What it cannot stand in for is lerobot's arithmetic; that is what tests/model/test_reference.py is for.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pi05_model.config import ModelConfig
from pi05_model.interchange.names import rows, split_sizes
from pi05_ros.bench.own import OwnSide, make_network
from pi05_ros.bench.peer_lerobot import memory, serve


class SecondSide(OwnSide):
    """Saves the weights that it draws."""

    def build(self, config: dict[str, Any], dtype: str, weights: str, act: bool) -> dict[str, float]:
        if weights:
            sizes = ModelConfig.from_dict(config)
            save(make_network(sizes, torch.float32, "", act=False).state_dict(), sizes, Path(weights))
        return super().build(config, dtype, "", act)


def save(weights: dict[str, torch.Tensor], config: ModelConfig, folder: Path) -> None:
    named = {}
    for ours, theirs in rows(config):
        parts = weights[ours].split(split_sizes(ours, config, len(weights[ours])))
        for name, part in zip(theirs, parts, strict=True):
            if name.endswith("patch_embedding.weight"):
                part = part.unflatten(1, (3, config.vision.patch, config.vision.patch))
            named[f"model.{name}"] = part.contiguous()
    folder.mkdir()
    save_file(named, folder / "model.safetensors")


if __name__ == "__main__":
    side = SecondSide()
    serve({call.__name__: call for call in (side.build, side.inputs, side.sample, side.answer, side.train, memory)})
