"""Inference: sampling action chunks and decoding subtasks, apart from the network.

The prefix runs once and leaves its keys and values; the solver steps and the decoded tokens read them. What depends
on flow time alone (the modulation of every norm of the expert) is computed once per time and kept, so an `Engine`
belongs to one set of weights: make a new one after changing them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pi05_model.batch import ModelInput, Text
from pi05_model.flow import Solver, integrate
from pi05_model.gemma import KeyValues, Modulation, Rope
from pi05_model.masks import suffix_mask
from pi05_model.pi05 import Pi05, Prefix
from pi05_model.tokenizer import EOS_ID, TokenTrie


class Engine:
    """Runs one network. Not thread-safe."""

    def __init__(self, model: Pi05) -> None:
        self.model = model.eval()
        self._modulations: dict[float, list[Modulation | None]] = {}

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
    ) -> Tensor:
        """Sample normalised action chunks.

        Args:
            inputs: images and expert prompt.
            noise: float [B, H, A] to start from; drawn with `generator` by default.
            steps, solver: of the integration from t = 1 to t = 0.
            generator: source of the noise.

        Returns:
            Float32 [B, H, A].
        """
        model, config = self.model, self.model.config
        if noise is None:
            shape = (len(inputs.text.tokens), config.horizon, config.max_action_dim)
            noise = torch.randn(shape, generator=generator).to(model.device)
        prefix, dense = self._prefix(inputs)
        cache = model.prefix_keys_values(prefix, dense)
        place = model.suffix_place(prefix.valid, config.horizon, dense)
        return integrate(lambda x, t: model.velocity(x, self._modulations_at(t), cache, place), noise, steps, solver)

    @torch.inference_mode()
    def generate(
        self,
        inputs: ModelInput,
        max_tokens: int | None = None,
        allowed: TokenTrie | None = None,
    ) -> list[list[int]]:
        """Decode greedily until end of sequence.

        Args:
            inputs: images and planner prompt.
            max_tokens: longest answer; `Pi05Config.max_subtask_tokens` by default.
            allowed: answers to choose from; by default any text. Decoding ends when only one of them is left.

        Returns:
            Token ids by sample, without end of sequence.
        """
        limit = self.model.config.max_subtask_tokens if max_tokens is None else max_tokens
        prefix, dense = self._prefix(inputs)
        hidden_BTW, layers = self.model.run_prefix(prefix, dense)
        last = _last_valid(prefix.valid)
        hidden_BW = hidden_BTW[torch.arange(len(last), device=last.device), last]
        valid, next_B1 = prefix.valid, prefix.valid.sum(dim=1, keepdim=True)
        answers: list[list[int]] = [[] for _ in range(len(valid))]
        running = [True] * len(valid)
        for i in range(limit):
            chosen = self._choose(self.model.logits(hidden_BW), answers, allowed)
            for row, token in enumerate(chosen):
                running[row] = running[row] and token != EOS_ID
                if running[row]:
                    answers[row].append(token)
                    rest = None if allowed is None else allowed.completion(answers[row])
                    if rest is not None:
                        answers[row] += rest
                        running[row] = False
            if not any(running) or i + 1 == limit:
                break
            hidden_BW, layers, valid = self._step(chosen, next_B1 + i, layers, valid)
        return answers

    def _prefix(self, inputs: ModelInput) -> tuple[Prefix, bool]:
        """Embed; leave out cameras and padding that no sample uses: they take no position, so this is exact.

        Returns:
            The prefix, and whether it is one block without padding, which needs no mask.
        """
        seen = inputs.image_mask.any(dim=0)
        features = inputs.features
        if inputs.images is not None:
            features = self.model.encode_images(inputs.images[:, seen])
        elif features is not None:
            features = features[:, seen]
        assert features is not None
        text = inputs.text
        used = int(text.valid.any(dim=0).sum())
        short = Text(text.tokens[:, :used], text.valid[:, :used], text.starts[:, :used], text.targets[:, :used])
        prefix = self.model.embed_prefix(features, inputs.image_mask[:, seen], short)
        return prefix, bool(prefix.valid.all()) and not bool(prefix.starts.any())

    def _modulations_at(self, time: float) -> list[Modulation | None]:
        if time not in self._modulations:
            self._modulations[time] = self.model.time_modulations(torch.tensor([time], device=self.model.device))
        return self._modulations[time]

    def _step(
        self, tokens: Sequence[int], position_B1: Tensor, layers: list[KeyValues], valid_BS: Tensor
    ) -> tuple[Tensor, list[KeyValues], Tensor]:
        """Run one more token per sample after `layers`; return its hidden state [B, W] and the longer cache."""
        tokens_B1 = torch.tensor(tokens, device=self.model.device)[:, None]
        one_B1 = torch.ones_like(tokens_B1, dtype=torch.bool)
        mask = suffix_mask(valid_BS, one_B1, one_B1)
        rope = Rope.at(position_B1, self.model.config.vlm.head_dim)
        hidden, own = self.model.vlm(self.model.embed_tokens(tokens_B1), rope, mask, layers)
        longer = [past.append(new) for past, new in zip(layers, own, strict=True)]
        return hidden[:, 0], longer, torch.cat([valid_BS, one_B1], dim=1)

    @staticmethod
    def _choose(logits_BV: Tensor, answers: Sequence[Sequence[int]], allowed: TokenTrie | None) -> list[int]:
        if allowed is None:
            return [int(token) for token in logits_BV.argmax(dim=-1)]
        chosen = []
        for logits_V, answer in zip(logits_BV, answers, strict=True):
            options = allowed.options(answer) or [EOS_ID]
            chosen.append(options[int(logits_V[options].argmax())])
        return chosen


def _last_valid(valid_BT: Tensor) -> Tensor:
    """Return the index [B] of the last valid token."""
    index = torch.arange(valid_BT.shape[1], device=valid_BT.device)
    return (valid_BT * index).argmax(dim=1)
