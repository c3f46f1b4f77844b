"""Inference: sampling action chunks and decoding text, apart from the network.

The prefix runs once and leaves its keys and values; the solver steps and the decoded tokens read them. What depends on
flow time and condition alone is computed once per time and kept, so an `Engine` belongs to one set of weights: make a
new one after changing them.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from pi05_model.backbone import Backbone, Prefix
from pi05_model.batch import ModelInput
from pi05_model.decoding import Constraint, State, forced
from pi05_model.flow import Solver, integrate
from pi05_model.flow_policy import FlowPolicy, Step
from pi05_model.gemma import Rope, StaticCache
from pi05_model.masks import suffix_mask
from pi05_model.tokenizer import EOS_ID


class Engine:
    """Runs one network. Not thread-safe."""

    def __init__(self, model: Backbone) -> None:
        self.model = model.eval()
        self._steps: dict[tuple[float, int, tuple[int, ...] | None], Step] = {}

    @torch.inference_mode()
    def features(self, images_BN3SS: Tensor) -> Tensor:
        """Return vision features [B, N, P, W]."""
        return self.model.encode_images(images_BN3SS)

    @torch.inference_mode()
    def sample_actions(
        self,
        inputs: ModelInput,
        noise: Tensor | None = None,
        steps: int = 10,
        solver: Solver = "euler",
        generator: torch.Generator | None = None,
        guidance: float = 1.0,
        given: Tensor | None = None,
    ) -> Tensor:
        """Sample normalised action chunks.

        Args:
            inputs: images and expert prompt, and what else the policy reads (state, condition).
            noise: float [B, H, A] to start from; drawn with `generator` by default.
            steps, solver: of the integration from t = 1 to t = 0.
            generator: source of the noise.
            guidance: scale s of v = v_0 + s (v_c - v_0), with `inputs.condition` c and no condition 0 (arXiv
                2207.12598). 1 follows the condition, 0 ignores it; other scales cost twice the steps, not the prefix.
            given: float [B, d, A], actions that the chunk begins with; they are kept as they are (arXiv 2512.05964).

        Returns:
            Float32 [B, H, A].

        Raises:
            TypeError: the policy has no flow (π0-FAST says actions as tokens: `generate`).
            ValueError: noise, condition or given actions do not fit.
        """
        model = self.model
        if not isinstance(model, FlowPolicy):
            raise TypeError(f"{type(model).__name__} says actions as tokens; use generate")
        config = model.config
        shape = (len(inputs.text.tokens), config.horizon, config.max_action_dim)
        if noise is None:
            noise = torch.randn(shape, generator=generator).to(model.device)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise is {tuple(noise.shape)}, expected {shape}")
        if given is not None and not 0 < given.shape[1] <= config.horizon:
            raise ValueError(f"given holds {given.shape[1]} steps; valid: 1 to {config.horizon}")
        if given is not None and (given.shape[0], given.shape[2]) != (shape[0], shape[2]):
            raise ValueError(f"given is {tuple(given.shape)}, expected [{shape[0]}, steps, {shape[2]}]")
        if inputs.condition is None and guidance not in (0, 1):
            raise ValueError(f"guidance {guidance} needs a condition to follow: give ModelInput.condition")
        condition = inputs.condition if guidance else None
        copies = 2 if condition is not None and guidance != 1 else 1
        prefix, dense = self._prefix(inputs)
        read = [kv.repeat(copies) for kv in model.prefix_keys_values(prefix, dense)]
        state = None if inputs.state is None else inputs.state.repeat(copies, 1)
        cache, place = model.context(read, prefix.prompt.repeat(copies, 1), state, dense)
        past = [StaticCache(kv, config.horizon) for kv in cache]
        if copies == 2:
            assert condition is not None
            condition = torch.cat([torch.zeros_like(condition), condition])

        def velocity(x_BHA: Tensor, time: float) -> Tensor:
            step = self._step(time, 0 if given is None else given.shape[1], condition)
            said = model.velocity(_begin_with(given, x_BHA).repeat(copies, 1, 1), step, past, place)
            if copies == 1:
                return said
            without, following = said.chunk(2)
            return without + guidance * (following - without)

        return _begin_with(given, integrate(velocity, noise, steps, solver))

    @torch.inference_mode()
    def generate(
        self,
        inputs: ModelInput,
        max_tokens: int | None = None,
        allowed: Constraint | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        stop: Collection[int] = (EOS_ID,),
    ) -> list[list[int]]:
        """Decode text, or action tokens, until a stop token.

        Args:
            inputs: images and prompt.
            max_tokens: longest answer; `ModelConfig.max_subtask_tokens` by default.
            allowed: what may be said; by default anything. Decoding ends as soon as only one end is left.
            temperature: 0 takes the likeliest token, 1 draws from the distribution, between sharpens it.
            generator: source of the draws (CPU).
            stop: ids that end an answer; they are not part of it.

        Returns:
            Token ids by sample. An answer that was cut off at `max_tokens` has that length.

        Raises:
            ValueError: the temperature is negative.
        """
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; valid: 0 (greedy) and more")
        limit = self.model.config.max_subtask_tokens if max_tokens is None else max_tokens
        prefix, dense = self._prefix(inputs)
        hidden_BTW, layers = self.model.run_prefix(prefix, dense)
        last = _last_valid(prefix.valid)
        hidden_BW = hidden_BTW[torch.arange(len(last), device=last.device), last]
        tail = _Tail(self.model, [StaticCache(kv, limit) for kv in layers], prefix.valid, dense)
        answers = [_Answer(allowed, stop) for _ in last]
        for i in range(limit):
            logits_BV = self.model.logits(hidden_BW).cpu()
            tokens = [a.say(row, temperature, generator) for a, row in zip(answers, logits_BV, strict=True)]
            if all(answer.done for answer in answers) or i + 1 == limit:
                break
            hidden_BW = tail.run(tokens)
        return [answer.tokens[:limit] for answer in answers]

    def _step(self, time: float, given: int, condition_B: Tensor | None) -> Step:
        """Return what a solver step at `time` needs, whose first `given` actions are clean; kept for the next chunk."""
        assert isinstance(self.model, FlowPolicy)
        rows = None if condition_B is None else tuple(condition_B.tolist())
        key = (time, given, rows)
        if key not in self._steps:
            horizon = self.model.config.horizon if given else 1
            time_1S = torch.full((1, horizon), time, device=self.model.device)
            time_1S[:, :given] = 0.0
            self._steps[key] = self.model.step(time_1S, condition_B)
        return self._steps[key]

    def _prefix(self, inputs: ModelInput) -> tuple[Prefix, bool]:
        """Embed; leave out cameras and padding that no sample uses: they take no position, so this is exact.

        Returns:
            The prefix, and whether it is one block without padding, which needs no mask.
        """
        seen = inputs.image_mask.any(dim=0).nonzero()[:, 0]
        images, features = (_only(x, seen) for x in (inputs.images, inputs.features))
        if images is not None:
            features = self.model.encode_images(images)
        assert features is not None
        prefix = self.model.embed_prefix(features, inputs.image_mask[:, seen], inputs.text.trimmed())
        return prefix, bool(prefix.valid.all()) and not bool(prefix.starts.any())


class _Tail:
    """Runs one more token per sample after what a cache holds."""

    def __init__(self, model: Backbone, layers: Sequence[StaticCache], valid_BS: Tensor, dense: bool) -> None:
        self._model, self._layers, self._valid, self._dense = model, layers, valid_BS, dense

    def run(self, tokens: Sequence[int]) -> Tensor:
        """Return the hidden state [B, W] of the tokens."""
        tokens_B1 = torch.tensor(tokens, device=self._valid.device)[:, None]
        one_B1 = torch.ones_like(tokens_B1, dtype=torch.bool)
        mask = None if self._dense else suffix_mask(self._valid, one_B1, one_B1)
        rope = Rope.at(self._valid.sum(dim=1, keepdim=True), self._model.config.vlm.head_dim)
        hidden, _ = self._model.vlm(self._model.embed_tokens(tokens_B1), rope, mask, self._layers)
        for layer in self._layers:
            layer.keep(1)
        self._valid = torch.cat([self._valid, one_B1], dim=1)
        out: Tensor = hidden[:, 0]
        return out


class _Answer:
    """One sample's answer as it grows."""

    def __init__(self, allowed: Constraint | None, stop: Collection[int]) -> None:
        self._allowed, self._stop = allowed, stop
        self._state: State = None if allowed is None else allowed.start
        self.tokens: list[int] = []
        self.done = False

    def say(self, logits_V: Tensor, temperature: float, generator: torch.Generator | None) -> int:
        """Choose the next token and return it (any token once the answer has ended)."""
        if self.done:
            return EOS_ID
        options = None if self._allowed is None else list(self._allowed.options(self._state)) or [EOS_ID]
        token = _choose(logits_V, options, temperature, generator)
        if token in self._stop:
            self.done = True
            return token
        self.tokens.append(token)
        if self._allowed is not None:
            self._state = self._allowed.advance(self._state, token)
            rest = forced(self._allowed, self._state)
            if rest is not None:
                self.tokens += rest
                self.done = True
        return token


def _choose(
    logits_V: Tensor, options: Sequence[int] | None, temperature: float, generator: torch.Generator | None
) -> int:
    candidates = logits_V if options is None else logits_V[list(options)]
    if temperature == 0:
        index = int(candidates.argmax())
    else:
        index = int(torch.multinomial((candidates / temperature).softmax(dim=-1), 1, generator=generator))
    return index if options is None else options[index]


def _only(x_BN: Tensor | None, index: Tensor) -> Tensor | None:
    """Return some of the cameras; all of them without a copy."""
    return x_BN if x_BN is None or len(index) == x_BN.shape[1] else x_BN[:, index]


def _begin_with(given_BdA: Tensor | None, x_BHA: Tensor) -> Tensor:
    return x_BHA if given_BdA is None else torch.cat([given_BdA, x_BHA[:, given_BdA.shape[1] :]], dim=1)


def _last_valid(valid_BT: Tensor) -> Tensor:
    """Return the index [B] of the last valid token."""
    index = torch.arange(valid_BT.shape[1], device=valid_BT.device)
    return (valid_BT * index).argmax(dim=1)
