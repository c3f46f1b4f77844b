"""π0: a state token stands before the actions, and flow time is joined to every action before a small MLP.

The prompt is the task alone. The state token is a block of its own that sees the prefix and not the actions, so its
keys and values are the same in every solver step: they are computed once and join the prefix. Source: arXiv 2410.24164,
appendix B.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pi05_model.config import ModelConfig
from pi05_model.flow_policy import FlowPolicy, Step, time_embedding
from pi05_model.gemma import KeyValues, Rope
from pi05_model.layers import HeadLinear, init_linear
from pi05_model.masks import suffix_mask


class Pi0(FlowPolicy):
    """Network and losses of π0."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, compute_dtype, adaptive=False)
        width = self.expert_config.width
        self.state_in = HeadLinear(config.max_action_dim, width)
        self.action_time_in, self.action_time_out = HeadLinear(2 * width, width), HeadLinear(width, width)
        for head in (self.state_in, self.action_time_in, self.action_time_out):
            init_linear(head)

    def step(self, time_BS: Tensor, condition_B: Tensor | None = None) -> Step:
        """Return the time embedding and the condition; the norms are plain."""
        features = time_embedding(time_BS, self.expert_config.width)
        return Step(self.expert.modulations(None), features, self.condition_embedding(condition_B))

    def embed_actions(self, noisy_BHA: Tensor, step: Step) -> Tensor:
        """Return one token per action: embedding (plus condition), joined with the time embedding, through the MLP."""
        assert step.features is not None
        actions: Tensor = self.action_in(noisy_BHA)
        if step.condition is not None:
            actions = actions + step.condition
        joined = torch.cat([actions, step.features.expand_as(actions)], dim=-1)
        tokens: Tensor = self.action_time_out(F.silu(self.action_time_in(joined)))
        return tokens

    def extend(
        self, cache: Sequence[KeyValues], prompt_BT: Tensor, state_BA: Tensor | None
    ) -> tuple[Sequence[KeyValues], Tensor]:
        """Append the keys and values of the state token.

        Raises:
            ValueError: there is no state.
        """
        if state_BA is None:
            raise ValueError("π0 reads the state as a token: give state, normalised and padded to max_action_dim")
        token_B1W = self.state_in(state_BA)[:, None].to(self.compute_dtype)
        one_B1 = torch.ones_like(prompt_BT[:, :1])
        rope = Rope.at(prompt_BT.sum(dim=1, keepdim=True), self.expert_config.head_dim)
        own = self.expert.keys_values(token_B1W, rope, suffix_mask(prompt_BT, one_B1, one_B1), cache)
        longer = [past.append(new) for past, new in zip(cache, own, strict=True)]
        return longer, torch.cat([prompt_BT, one_B1], dim=1)
