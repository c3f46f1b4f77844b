"""Sizes of the network, and the presets.

A configuration says everything that fixes the shapes of a checkpoint. What may change between two runs of one
checkpoint (precision, number of solver steps, threads) is an argument of whoever runs it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP encoder.

    Attributes:
        width, depth, mlp_dim, heads: of the transformer.
        patch: edge of a patch in pixels of the input image.
        image_size: edge of the square input image in pixels.
        stem_channels: 0 for SigLIP's linear patch embedding. Otherwise a two-layer convolution of this many channels
            at a quarter of the resolution comes before the patches: a network trained from little data locates
            edges better with it than with one linear map of a large patch.
    """

    width: int
    depth: int
    mlp_dim: int
    heads: int
    patch: int
    image_size: int = 224
    stem_channels: int = 0

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"vision width {self.width} is not a multiple of its {self.heads} heads")
        if self.stem_channels and self.patch % 4:
            raise ValueError(f"a convolutional stem needs a patch that is a multiple of 4, not {self.patch}")

    @property
    def tokens(self) -> int:
        """Number of tokens of one image."""
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True)
class GemmaConfig:
    """One Gemma stack. `head_dim` is explicit: in Gemma it is not width / heads."""

    width: int
    depth: int
    mlp_dim: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, not {self.head_dim}")


@dataclass(frozen=True)
class Pi05Config:
    """The whole policy network.

    Attributes:
        vision, vlm, expert: the three parts. `vlm` and `expert` agree in depth, heads, kv_heads and head_dim, because
            the expert attends to the keys and values of the VLM layer by layer.
        vocab_size: rows of the token embedding.
        horizon: steps in an action chunk.
        max_action_dim: width of the action vector in the network; shorter vectors are padded with zeros.
        max_prompt_tokens: longest prompt, without the subtask that follows it.
        max_subtask_tokens: longest planner answer, end of sequence included.
        cameras: model keys in the order in which their tokens stand in the prefix; the planner sees all of them.
        expert_cameras: the ones that the action expert sees.
        insulate: keep the flow loss out of the VLM (knowledge insulation, arXiv 2505.23705).
        clip_state: clip the prompt's state bins to 0..255. openpi and lerobot do not.
        relative_entries: entries of the action that the network says relative to the state of the observation
            (openpi's delta actions); the others, such as grippers and velocities, are said as they are.
        state_in_prompt: False for checkpoints trained without the state (openpi's pi05_libero).
    """

    vision: VisionConfig
    vlm: GemmaConfig
    expert: GemmaConfig
    vocab_size: int
    horizon: int = 50
    max_action_dim: int = 32
    max_prompt_tokens: int = 200
    max_subtask_tokens: int = 32
    cameras: tuple[str, ...] = field(
        default=("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb", "base_1_rgb"),
    )
    expert_cameras: tuple[str, ...] = field(default=("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"))
    insulate: bool = True
    clip_state: bool = True
    state_in_prompt: bool = True
    relative_entries: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("depth", "heads", "kv_heads", "head_dim"):
            vlm, expert = getattr(self.vlm, name), getattr(self.expert, name)
            if vlm != expert:
                raise ValueError(f"vlm and expert must agree in {name}: {vlm} != {expert}")
        unknown = [key for key in self.expert_cameras if key not in self.cameras]
        if unknown:
            raise ValueError(f"expert_cameras {unknown} are not among cameras {list(self.cameras)}")

    @property
    def image_size(self) -> int:
        """Edge of the square input image in pixels."""
        return self.vision.image_size

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Pi05Config":
        """Rebuild from `to_dict`.

        Raises:
            ValueError: a key is unknown or missing; the message names it.
        """
        parts = dict(values)
        try:
            for name, part in (("vision", VisionConfig), ("vlm", GemmaConfig), ("expert", GemmaConfig)):
                parts[name] = part(**parts[name])
            for name in ("cameras", "expert_cameras", "relative_entries"):
                if name in parts:
                    parts[name] = tuple(parts[name])
            return cls(**parts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a Pi05Config: {error}") from error


def _base() -> Pi05Config:
    return Pi05Config(
        vision=VisionConfig(width=1152, depth=27, mlp_dim=4304, heads=16, patch=14),
        vlm=GemmaConfig(width=2048, depth=18, mlp_dim=16384, heads=8, kv_heads=1, head_dim=256),
        expert=GemmaConfig(width=1024, depth=18, mlp_dim=4096, heads=8, kv_heads=1, head_dim=256),
        vocab_size=257152,
    )


def _tiny() -> Pi05Config:
    """Return the size that runs in real time on two CPU cores.

    Multiplications decide, in training as on the robot. Vision is not starved: a convolutional stem at 56 x 56 stands
    before the 28-pixel patches, because grasping needs edges to a fraction of a patch. Most weights are where they
    cost least: in the expert, which runs over 50 tokens, and in its modulations, which are computed once per step.
    """
    return Pi05Config(
        vision=VisionConfig(width=144, depth=3, mlp_dim=432, heads=4, patch=28, stem_channels=32),
        vlm=GemmaConfig(width=128, depth=4, mlp_dim=384, heads=4, kv_heads=1, head_dim=32),
        expert=GemmaConfig(width=192, depth=4, mlp_dim=512, heads=4, kv_heads=1, head_dim=32),
        vocab_size=5120,
        max_prompt_tokens=64,
        max_subtask_tokens=16,
    )


def _debug() -> Pi05Config:
    return Pi05Config(
        vision=VisionConfig(width=32, depth=1, mlp_dim=64, heads=2, patch=56, stem_channels=8),
        vlm=GemmaConfig(width=32, depth=2, mlp_dim=64, heads=2, kv_heads=1, head_dim=16),
        expert=GemmaConfig(width=32, depth=2, mlp_dim=64, heads=2, kv_heads=1, head_dim=16),
        vocab_size=5120,
        max_prompt_tokens=64,
        max_subtask_tokens=16,
    )


PRESETS: dict[str, Pi05Config] = {"pi05_base": _base(), "pi05_tiny": _tiny(), "pi05_debug": _debug()}
"""Named sizes. `pi05_base` is the published π0.5."""
