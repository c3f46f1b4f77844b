"""lerobot's π0.5 as the other side of `pi05 bench model`: a script for a Python that has lerobot, not this package.

It speaks JSON over stdin and stdout, one object a line: {"op": name, ...arguments} in, {"ok": result} or {"error":
text} out. It stays warm between calls and times each call itself. Only the standard library, torch and lerobot are
imported; `own` uses `serve` from here, so that both sides are driven alike.

lerobot 0.6.1 takes only the published widths. Reduced ones are set by replacing its table of Gemma sizes and the
constructors of its two transformers; the layers, the attention and the sampling loop are its own, untouched. It has 8
heads hard-coded.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Handlers = Mapping[str, Callable[..., Any]]
VISION = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_dim",
}
HEADS = 8
# What it declares goes when it goes.
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


def serve(handlers: Handlers) -> None:
    """Answer requests until stdin ends. What a library prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": handlers[request.pop("op")](**request)}
        except Exception as error:  # every failure has to reach the other end, or it would wait for ever
            answer = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(answer) + "\n")


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Return how long a call takes [ms], and how much processor time all threads of this process spend on it [ms]."""
    begin, spent = time.perf_counter(), time.process_time()
    call()
    return {"ms": (time.perf_counter() - begin) * 1e3, "cpu_ms": (time.process_time() - spent) * 1e3}


def memory() -> dict[str, float]:
    """Return the resident size of this process now, and the highest so far [MB]."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"resident_mb": pages * resource.getpagesize() / 1e6, "peak_mb": peak / 1e6}


class LerobotSide:
    """Builds a network, keeps inputs, times calls."""

    def build(self, config: dict[str, Any], dtype: str, weights: str, act: bool) -> dict[str, float]:
        """Make a network with seeded random weights and store them for the other side.

        Args:
            config: `ModelConfig.to_dict()` of a π0.5.
            dtype: "float32" or "bfloat16" (lerobot's own mixture).
            weights: folder to save the policy in; empty: nowhere.
            act: of no consequence here: lerobot acts with the network that it trains.
        """
        torch.manual_seed(0)
        policy = reduced_policy(config, dtype)
        randomise(policy)
        if weights:
            policy.save_pretrained(weights)
        self._network = policy.model
        return {"parameters": sum(p.numel() for p in policy.parameters())}

    def inputs(self, path: str) -> None:
        """Load the tensors that `draw_inputs` stored, as lerobot takes them: a list of images and one of masks."""
        given = torch.load(path, weights_only=True)
        images, masks = list(given["images"].unbind(1)), list(given["image_mask"].unbind(1))
        self._observation = (images, masks, given["tokens"], given["token_mask"])
        self._given = given

    def sample(self, steps: int, save: str = "") -> dict[str, float]:
        """Sample a chunk."""

        def call() -> None:
            self._chunk = self._network.sample_actions(*self._observation, noise=self._given["noise"], num_steps=steps)

        self._network.eval()
        took = timed(call)
        if save:
            torch.save(self._chunk, save)
        return took

    def train(self) -> dict[str, float]:
        """Do one forward and backward pass; gradients are dropped before, outside the time."""

        def call() -> None:
            errors = self._network(*self._observation, given["actions"], given["noise"], given["time"])
            self._loss: Tensor = errors[..., : int(given["action_dim"])].mean()
            self._loss.backward()

        given = self._given
        self._network.train()
        self._network.zero_grad(set_to_none=True)
        return {**timed(call), "loss": self._loss.item()}


def reduced_policy(config: dict[str, Any], dtype: str) -> Any:
    """Return a lerobot PI05Policy of these sizes.

    Raises:
        ValueError: the sizes are such that lerobot cannot have them.
    """
    for part in ("vlm", "expert"):
        if config[part]["heads"] != HEADS:
            raise ValueError(f"{part} has {config[part]['heads']} heads; lerobot 0.6.1 has {HEADS} hard-coded")
    if config["vision"]["patch"] != 14 or config["vision"]["stem_channels"]:
        raise ValueError("lerobot's vision tower has patches of 14 pixels and no convolutional stem")
    importlib.import_module("lerobot")  # first, so that an error names it
    import_torchvision()
    types, module, settings = (
        importlib.import_module(f"lerobot.{name}")
        for name in ("configs.types", "policies.pi05.modeling_pi05", "policies.pi05.configuration_pi05")
    )
    replace_constructors(module, config)
    size = config["vision"]["image_size"]
    seen = {
        f"observation.images.{key}": types.PolicyFeature(type=types.FeatureType.VISUAL, shape=(3, size, size))
        for key in config["expert_cameras"]
    }
    acted = {"action": types.PolicyFeature(type=types.FeatureType.ACTION, shape=(config["max_action_dim"],))}
    chosen = settings.PI05Config(
        input_features=seen,
        output_features=acted,
        device="cpu",
        dtype=dtype,
        chunk_size=config["horizon"],
        n_action_steps=config["horizon"],
        image_resolution=(size, size),
    )
    return module.PI05Policy(chosen)


def import_torchvision() -> None:
    """Import torchvision, if need be without its compiled part (built for another torch), which no policy uses."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]


def replace_constructors(module: Any, config: dict[str, Any]) -> None:
    """Make lerobot's π0.5 module build transformers of these sizes."""
    pali_gemma, expert = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM
    parts = {"gemma_2b": config["vlm"], "gemma_300m": config["expert"]}

    def sizes(variant: str) -> SimpleNamespace:
        part = parts[variant]
        return SimpleNamespace(num_heads=part["heads"], num_kv_heads=part["kv_heads"], **part)

    def make_pali_gemma(config: Any) -> Any:
        config.image_token_index = config.image_token_id = config.text_config.vocab_size = vocabulary
        config.text_config.pad_token_id = 0
        for theirs, ours in VISION.items():
            setattr(config.vision_config, theirs, tower[ours])
        config.hidden_size = config.projection_dim = config.vision_config.projection_dim = parts["gemma_2b"]["width"]
        return pali_gemma(config=config)

    def make_expert(config: Any) -> Any:
        config.vocab_size, config.pad_token_id = vocabulary, 0
        return expert(config=config)

    tower, vocabulary = config["vision"], config["vocab_size"]
    module.get_gemma_config = sizes
    module.PaliGemmaForConditionalGenerationWithPiGemma = make_pali_gemma
    module.PiGemmaForCausalLM = make_expert


def randomise(policy: Any) -> None:
    """Draw the time modulations too, which start at zero: with zero gates the expert would do nothing."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".dense." in name:
                parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.3 * parameter.shape[1] ** -0.5)


def main() -> None:
    """Serve."""
    side = LerobotSide()
    calls = (side.build, side.inputs, side.sample, side.train, memory)
    serve({call.__name__: call for call in calls})


if __name__ == "__main__":
    main()
