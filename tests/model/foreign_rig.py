"""Checkpoints of this project, lerobot and openpi to test with: small networks, and the golden ones changed on disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pi05_model.backbone import Backbone
from pi05_model.build import build
from pi05_model.config import GemmaConfig, ModelConfig, VisionConfig
from pi05_model.interchange.foreign import Choices
from pi05_model.normalize import Family, Method, NormStats
from pi05_model.prompts import PolicyName

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = json.loads((GOLDEN / "sizes.json").read_text())
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
POLICIES: tuple[PolicyName, ...] = ("pi05", "pi0", "pi0_fast")
DIM = 7


def small_config(policy: PolicyName, **settings: object) -> ModelConfig:
    """Return sizes that lerobot and openpi could have: 8 heads, no stem."""
    vision = VisionConfig(width=16, depth=1, mlp_dim=24, heads=2, patch=14, image_size=28)
    vlm = GemmaConfig(width=24, depth=2, mlp_dim=32, heads=8, kv_heads=1, head_dim=4)
    expert = None if policy == "pi0_fast" else GemmaConfig(16, 2, 20, 8, 1, 4)
    values = {"horizon": 6, "cameras": CAMERAS, "expert_cameras": CAMERAS, **settings}
    return ModelConfig(vision=vision, vlm=vlm, expert=expert, vocab_size=5120, policy=policy, **values)  # type: ignore[arg-type]


def random_network(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Backbone:
    """Return a network without a zero in it."""
    torch.manual_seed(3)
    model = build(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def some_stats(method: Method, family: Family = "project") -> dict[str, NormStats]:
    """Return statistics whose entry 2 hardly moves."""
    rng = np.random.default_rng(2)
    stats = {}
    for name in ("state", "actions"):
        samples = rng.normal(rng.normal(size=DIM), 0.3, size=(400, DIM))
        samples[:, 2] *= 1e-3
        of = NormStats.from_samples(samples)
        arrays = (of.mean, of.std, of.q01, of.q99, of.min, of.max)
        stats[name] = NormStats(*arrays, of.count, family=family, method=method)
    return stats


def golden(policy: str, folder: Path) -> Path:
    """Copy a golden checkpoint into `folder`, to change it there."""
    target = folder / policy
    shutil.copytree(GOLDEN / policy, target)
    return target


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite model.safetensors."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def change_json(file: Path, **values: object) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def choices(**settings: object) -> Choices:
    """Return choices with the sizes of the golden networks."""
    return Choices(sizes=SIZES, **settings)  # type: ignore[arg-type]


def same_weights(a: Path, b: Path) -> bool:
    """Tell whether two folders hold the same tensors, bit for bit."""
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )
