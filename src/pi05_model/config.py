"""Sizes of the network, and the presets.

A configuration says everything that fixes the shapes of a checkpoint. What may change between two runs of one
checkpoint (precision, number of solver steps, threads) is an argument of whoever runs it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pi05_model.normalize import Family
from pi05_model.prompts import ControlMode, PolicyName

POLICIES: tuple[PolicyName, ...] = ("pi05", "pi0", "pi0_fast")

VIEWS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""openpi's names of the three cameras that say where to act: one on the scene, one at each wrist."""


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
class ModelConfig:
    """The whole policy network.

    Attributes:
        vision, vlm, expert: the parts. `vlm` and `expert` agree in depth, heads, kv_heads and head_dim, because the
            expert attends to the keys and values of the VLM layer by layer. π0-FAST has no expert: None.
        vocab_size: rows of the token embedding.
        horizon: steps in an action chunk.
        max_action_dim: width of the state and action vectors in the network; shorter ones are padded with zeros.
        max_prompt_tokens: longest prompt, without the answer that follows it.
        max_subtask_tokens: longest planner answer, end of sequence included.
        max_action_tokens: longest answer of action tokens (π0-FAST, and FAST targets of π0.5).
        cameras: model keys in the order in which their tokens stand in the prefix; the planner sees all of them.
        expert_cameras: the ones that the action expert sees.
        insulate: keep the flow loss out of the VLM (knowledge insulation, arXiv 2505.23705).
        conditions: rows of the condition embedding for classifier-free guidance, row 0 (no condition) included;
            0 leaves the embedding out.
        clip_state: clip the prompt's state bins to 0..255. openpi and lerobot do not.
        relative_entries: entries of the action that the network says relative to the state of the observation
            (openpi's delta actions); the others, such as grippers and velocities, are said as they are.
        state_in_prompt: False for checkpoints trained without the state (openpi's pi05_libero).
        control_mode: what every prompt says about the actions ("joint" or "end effector"); None says nothing.
        tied_head: the text head is the token embedding. False for π0-FAST checkpoints that lerobot trained further,
            where the two drift apart.
        policy: "pi05" (state in the prompt, AdaRMS, text answers), "pi0" (state token, time concatenated with the
            action) or "pi0_fast" (actions as text).
        family: whose exact prompts it was trained with: this project's, openpi's or lerobot's (see `prompts.clean`).
    """

    vision: VisionConfig
    vlm: GemmaConfig
    expert: GemmaConfig | None
    vocab_size: int
    horizon: int = 50
    max_action_dim: int = 32
    max_prompt_tokens: int = 200
    max_subtask_tokens: int = 32
    max_action_tokens: int = 256
    cameras: tuple[str, ...] = (*VIEWS, "base_1_rgb")
    expert_cameras: tuple[str, ...] = VIEWS
    insulate: bool = True
    conditions: int = 0
    clip_state: bool = True
    state_in_prompt: bool = True
    relative_entries: tuple[int, ...] = ()
    control_mode: ControlMode | None = None
    tied_head: bool = True
    policy: PolicyName = "pi05"
    family: Family = "project"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"unknown policy {self.policy!r}; choose one of {', '.join(POLICIES)}")
        if (self.expert is None) != (self.policy == "pi0_fast"):
            raise ValueError(f"{self.policy} {'needs an' if self.expert is None else 'has no'} action expert")
        for name in ("depth", "heads", "kv_heads", "head_dim") if self.expert else ():
            vlm, expert = getattr(self.vlm, name), getattr(self.expert, name)
            if vlm != expert:
                raise ValueError(f"vlm and expert must agree in {name}: {vlm} != {expert}")
        if not self.tied_head and self.policy != "pi0_fast":
            raise ValueError(
                f"{self.policy} ties its text head to the embedding; only pi0_fast may have one of its own"
            )
        unknown = [key for key in self.expert_cameras if key not in self.cameras]
        if unknown:
            raise ValueError(f"expert_cameras {unknown} are not among cameras {list(self.cameras)}")
        if not self.expert_cameras:
            raise ValueError(
                f"no camera is left for the actions: expert_cameras is empty, cameras are {list(self.cameras)}"
            )
        if self.conditions == 1 or self.conditions < 0:
            raise ValueError(f"conditions is {self.conditions}; valid: 0, or 2 and more (row 0 means no condition)")

    @property
    def image_size(self) -> int:
        """Edge of the square input image in pixels."""
        return self.vision.image_size

    @property
    def expert_camera_indices(self) -> list[int]:
        """Where the expert's cameras stand among `cameras`."""
        return [self.cameras.index(key) for key in self.expert_cameras]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Rebuild from `to_dict`.

        Raises:
            ValueError: a key is unknown or missing; the message names it.
        """
        parts = dict(values)
        try:
            for name, part in (("vision", VisionConfig), ("vlm", GemmaConfig), ("expert", GemmaConfig)):
                parts[name] = None if parts[name] is None else part(**parts[name])
            for name in ("cameras", "expert_cameras", "relative_entries"):
                if name in parts:
                    parts[name] = tuple(parts[name])
            return cls(**parts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a ModelConfig: {error}") from error


def _base() -> ModelConfig:
    """Return the published size: SigLIP So400m/14, Gemma 2B, a 300 M expert."""
    return ModelConfig(
        vision=VisionConfig(width=1152, depth=27, mlp_dim=4304, heads=16, patch=14),
        vlm=GemmaConfig(width=2048, depth=18, mlp_dim=16384, heads=8, kv_heads=1, head_dim=256),
        expert=GemmaConfig(width=1024, depth=18, mlp_dim=4096, heads=8, kv_heads=1, head_dim=256),
        vocab_size=257152,
    )


def _small() -> ModelConfig:
    """Return about 100 M parameters: the published shapes made narrow, for one workstation GPU."""
    return ModelConfig(
        vision=VisionConfig(width=512, depth=12, mlp_dim=2048, heads=8, patch=16),
        vlm=GemmaConfig(width=512, depth=12, mlp_dim=2048, heads=8, kv_heads=1, head_dim=64),
        expert=GemmaConfig(width=256, depth=12, mlp_dim=1024, heads=8, kv_heads=1, head_dim=64),
        vocab_size=5120,
        max_prompt_tokens=128,
    )


def _tiny() -> ModelConfig:
    """Return the size that runs in real time on two CPU cores.

    Multiplications decide, in training as on the robot. Vision is not starved: a convolutional stem at 56 x 56 stands
    before the 28-pixel patches, because grasping needs edges to a fraction of a patch. Most weights are where they
    cost least: in the expert, which runs over 50 tokens, and in its modulations, which are computed once per step.
    """
    return ModelConfig(
        vision=VisionConfig(width=144, depth=3, mlp_dim=432, heads=4, patch=28, stem_channels=32),
        vlm=GemmaConfig(width=128, depth=4, mlp_dim=384, heads=4, kv_heads=1, head_dim=32),
        expert=GemmaConfig(width=192, depth=4, mlp_dim=512, heads=4, kv_heads=1, head_dim=32),
        vocab_size=5120,
        max_prompt_tokens=64,
        max_subtask_tokens=16,
    )


def _debug() -> ModelConfig:
    return ModelConfig(
        vision=VisionConfig(width=32, depth=1, mlp_dim=64, heads=2, patch=56, stem_channels=8),
        vlm=GemmaConfig(width=32, depth=2, mlp_dim=64, heads=2, kv_heads=1, head_dim=16),
        expert=GemmaConfig(width=32, depth=2, mlp_dim=64, heads=2, kv_heads=1, head_dim=16),
        vocab_size=5120,
        max_prompt_tokens=64,
        max_subtask_tokens=16,
    )


_SIZES = {"base": _base(), "small": _small(), "tiny": _tiny(), "debug": _debug()}


def _of(policy: PolicyName, size: ModelConfig) -> ModelConfig:
    """Return a size as another policy; only π0.5 has a planner, so only it has cameras that the expert lacks."""
    if policy == "pi0":  # its prompt is the task alone
        return dataclasses.replace(size, policy=policy, cameras=VIEWS, max_prompt_tokens=48, state_in_prompt=False)
    if policy == "pi0_fast":
        prompt = min(250, size.max_prompt_tokens + 50)
        return dataclasses.replace(size, policy=policy, cameras=VIEWS, expert=None, max_prompt_tokens=prompt)
    return size


PRESETS: dict[str, ModelConfig] = {
    f"{policy}_{name}": _of(policy, size) for policy in POLICIES for name, size in _SIZES.items()
}
"""Named sizes of every policy. `pi05_base`, `pi0_base` and `pi0_fast_base` are the published ones."""
