"""π0.5: flow time modulates every norm of the action expert, and the state is text in the prompt.

Two prompts, one set of weights. The planner's prompt holds the task, and its answer (the subtask) is read causally
after it. The expert's prompt holds the subtask; action tokens (FAST) may follow it causally in training, and the noisy
chunk reads the prompt, never those. Sources: arXiv 2504.16054 (π0.5), 2505.23705 (knowledge insulation).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pi05_model.config import ModelConfig
from pi05_model.flow_policy import FlowPolicy, Step, time_embedding
from pi05_model.layers import HeadLinear, init_linear


class Pi05(FlowPolicy):
    """Network and losses of π0.5."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, compute_dtype, adaptive=True)
        width = self.expert_config.width
        self.time_in, self.time_out = HeadLinear(width, width), HeadLinear(width, width)
        for head in (self.time_in, self.time_out):
            init_linear(head)

    def step(self, time_BS: Tensor, condition_B: Tensor | None = None) -> Step:
        """Return the modulations: time embedding -> MLP (-> plus condition) -> scale, shift and gate of every norm."""
        embedded = time_embedding(time_BS, self.expert_config.width)
        features = F.silu(self.time_out(F.silu(self.time_in(embedded))))
        condition = self.condition_embedding(condition_B)
        return Step(self.expert.modulations(features if condition is None else features + condition))

    def embed_actions(self, noisy_BHA: Tensor, step: Step) -> Tensor:
        """Return one token per action."""
        tokens: Tensor = self.action_in(noisy_BHA)
        return tokens
