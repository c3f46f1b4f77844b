"""The policy: planner and action expert behind one object that takes raw observations.

It runs a checkpoint of any of the three policies; π0 and π0-FAST have no planner, their subtask is the task itself.
Planner and action expert share one network, and the vision features of one camera image serve both: they are kept by
(stamp, camera) for as long as newer stamps have not pushed them out. Not thread-safe; a node calls it from one thread.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pi05_model.backbone import Backbone
from pi05_model.batch import ModelInput
from pi05_model.checkpoint import load_checkpoint
from pi05_model.decoding import TokenTrie
from pi05_model.engine import Engine
from pi05_model.flow import Solver
from pi05_model.flow_policy import FlowPolicy
from pi05_model.images import check_image
from pi05_model.layers import pack_for_cpu
from pi05_model.observation import Observation, check_cameras, check_state
from pi05_model.preprocess import Preprocessor
from pi05_model.prompts import parse_boxes

KEPT_FEATURES = 16


class ObservationError(ValueError):
    """An observation that the policy must not act on; the message names the value and what is expected."""


class Pi05Policy:
    """Implements `pi05_model.observation.Policy`.

    Args:
        model: network in the state it shall run in.
        preprocessor: statistics and vocabulary of the same checkpoint.
        subtasks: the planner's answers are chosen from these; None or an empty list allows any text.
        threads: intra-op threads of torch in this process; None leaves the setting alone.
        seed: of the noise that chunks start from.
        steps, solver: of the flow integration.
        temperature: standard deviation of the noise that a chunk starts from. 1 samples what was learned, 0 starts
            at the noise's mean: repeatable, and for demonstrations with one way to do it nearer to that way. For
            π0-FAST, the temperature of its tokens.
        condition: row of the condition embedding that chunks are made under; None: no condition.
        guidance: how strongly (see `Engine.sample_actions`).
    """

    def __init__(
        self,
        model: Backbone,
        preprocessor: Preprocessor,
        subtasks: Sequence[str] | None = None,
        threads: int | None = None,
        seed: int = 0,
        steps: int = 10,
        solver: Solver = "euler",
        temperature: float = 1.0,
        condition: int | None = None,
        guidance: float = 1.0,
    ) -> None:
        if not 0.0 <= temperature <= 1.0:
            raise ValueError(f"temperature is {temperature}; valid: 0 to 1")
        if threads is not None:
            torch.set_num_threads(threads)
        self.preprocessor = preprocessor
        self.config = model.config
        self.subtasks = tuple(subtasks or ())
        self.steps = steps
        self.solver: Solver = solver
        self.temperature = temperature
        self.guidance = guidance
        self._condition = None if condition is None else torch.tensor([condition])
        if condition is not None and not 0 <= condition < model.config.conditions:
            raise ValueError(f"condition is {condition}; the checkpoint has {model.config.conditions} rows")
        self._engine = Engine(model)
        self._generator = torch.Generator().manual_seed(seed)
        self._allowed = self._trie() if self.subtasks else None
        self._features: OrderedDict[tuple[int, str], Tensor] = OrderedDict()

    @classmethod
    def load(
        cls,
        path: Path | str,
        threads: int | None = 1,
        seed: int = 0,
        steps: int = 10,
        solver: Solver = "euler",
        subtasks: Sequence[str] | None = None,
        compute_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        temperature: float | None = None,
        condition: int | None = None,
        guidance: float = 1.0,
    ) -> "Pi05Policy":
        """Load a checkpoint folder.

        Args:
            path: folder written by `save_checkpoint`.
            subtasks: allowed answers of the planner; by default the checkpoint's own list ("subtasks" of its extra).
            compute_dtype: float32 or bfloat16.
            device: where to run.
            threads: as in the constructor; one is quickest for `pi05_tiny` beside the rest of the graph on two cores.
            seed, steps, solver: as in the constructor.
            temperature: as in the constructor; by default what the checkpoint's extra says, else 1.
            condition, guidance: as in the constructor.

        Raises:
            CheckpointError: the checkpoint is missing or does not fit; nothing is loaded in part.
        """
        checkpoint = load_checkpoint(path, compute_dtype, compute_dtype)
        preprocessor = Preprocessor(
            checkpoint.config, checkpoint.stats, checkpoint.tokenizer, checkpoint.action_tokenizer
        )
        chosen = checkpoint.extra.get("subtasks") if subtasks is None else subtasks
        model = checkpoint.model.to(device)
        if torch.device(device).type == "cpu":
            pack_for_cpu(model)
        if temperature is None:
            temperature = float(checkpoint.extra.get("temperature", 1.0))
        return cls(model, preprocessor, chosen, threads, seed, steps, solver, temperature, condition, guidance)

    def _trie(self) -> TokenTrie:
        encoded = self.preprocessor.tokenizer.encode(self.subtasks)
        room = self.config.max_subtask_tokens - 1
        for subtask, ids in zip(self.subtasks, encoded, strict=True):
            if len(ids) > room:
                raise ValueError(f"subtask {subtask!r} takes {len(ids)} tokens, the network answers with {room}")
        return TokenTrie(encoded)

    @property
    def action_shape(self) -> tuple[int, int]:
        """(H, D): steps in a chunk and entries of an action."""
        return self.config.horizon, self.preprocessor.action_dim

    @property
    def truncated_prompts(self) -> int:
        """Prompts that were cut so far because they did not fit."""
        return self.preprocessor.truncated

    def plan(self, observation: Observation, task: str) -> str:
        """Return the next subtask of a task; a policy without a planner returns the task.

        A task that does not fit into the prompt is cut: the first cut warns, all are counted in `truncated_prompts`.

        Raises:
            ObservationError: the observation is malformed.
        """
        self._check(observation)
        if self.config.policy != "pi05":
            return task
        text = self.preprocessor.planner_text(observation.state[None], [task])
        features, mask = self._image_features(observation, self.config.cameras)
        inputs = ModelInput(None, mask, text, features).to(self._engine.model.device)
        [tokens] = self._engine.generate(inputs, allowed=self._allowed)
        said = self.preprocessor.tokenizer.decode(tokens).strip()
        return parse_boxes(said)[1] or said  # boxes are for the planner to think of, not for the action expert

    def act(
        self, observation: Observation, subtask: str, noise: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return a chunk of actions [H, D] in physical units; row k is due k+1 steps after the observation.

        Args:
            observation: what the robot sees and where it is.
            subtask: what to do, as `plan` says it.
            noise: [H, max_action_dim] to start from; by default drawn from the seeded generator,
                times the temperature. π0-FAST has none.

        Raises:
            ObservationError: the observation is malformed.
            MalformedActionsError: π0-FAST's answer is no whole chunk; nothing may be executed.
        """
        self._check(observation)
        text = self.preprocessor.expert_text(observation.state[None], [subtask])
        features, mask = self._image_features(observation, self.config.expert_cameras)
        state = self.preprocessor.state_input(observation.state[None])
        inputs = ModelInput(None, mask, text, features, state, self._condition).to(self._engine.model.device)
        says = self._flow if isinstance(self._engine.model, FlowPolicy) else self._tokens
        return self.preprocessor.physical_actions(says(inputs, noise), observation.state)

    def _flow(self, inputs: ModelInput, noise: NDArray[np.float32] | None) -> Tensor:
        """Return a normalised chunk [H, A] by integrating the flow."""
        shape = (self.config.horizon, self.config.max_action_dim)
        drawn = self.temperature * torch.randn(shape, generator=self._generator)
        start = drawn if noise is None else torch.as_tensor(noise)
        if tuple(start.shape) != shape:
            raise ValueError(f"noise is {tuple(start.shape)}, expected {shape}")
        start = start[None].float().to(inputs.image_mask.device)
        return self._engine.sample_actions(inputs, start, self.steps, self.solver, guidance=self.guidance)[0]

    def _tokens(self, inputs: ModelInput, noise: NDArray[np.float32] | None) -> Tensor:
        """Return a normalised chunk [H, D] by decoding action tokens under their grammar."""
        if noise is not None:
            raise ValueError("π0-FAST decodes tokens: it does not start from noise")
        words = self.preprocessor.action_text
        assert words is not None
        [said] = self._engine.generate(
            inputs, self.config.max_action_tokens, words.constraint(), self.temperature, self._generator
        )
        return torch.from_numpy(words.read(said))

    def warm_up(self) -> None:
        """Run both calls once on black images, so that the first real one is as quick as the rest."""
        size = self.config.image_size
        images = {key: np.zeros((size, size, 3), dtype=np.uint8) for key in self.config.cameras}
        observation = Observation(-1, images, self.preprocessor.stats["state"].mean)
        generator = self._generator.get_state()
        self.act(observation, "warm up")
        self.plan(observation, "warm up")
        self._generator.set_state(generator)
        self._features.clear()

    def _image_features(self, observation: Observation, cameras: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features [1, N, P, W] and mask [1, N]; only images that are new go through the encoder."""
        stamp = observation.stamp_ns
        present = [key for key in cameras if key in observation.images]
        new = [key for key in present if (stamp, key) not in self._features]
        if new:
            images = torch.stack([self.preprocessor.image(observation.images[key]) for key in new])
            encoded = self._engine.features(images[None].to(self._engine.model.device))[0]
            self._features.update({(stamp, key): tokens for key, tokens in zip(new, encoded, strict=True)})
        kept = [self._features[stamp, key] for key in present]
        while len(self._features) > KEPT_FEATURES:
            self._features.popitem(last=False)
        if not kept:
            raise ObservationError(f"the observation has none of the cameras {list(cameras)}")
        # Absent cameras take no position, so leaving them out is what masking them would give.
        return torch.stack(kept)[None], torch.ones(1, len(kept), dtype=torch.bool)

    def _check(self, observation: Observation) -> None:
        try:
            check_state(observation.state, self.preprocessor.stats["state"].dim, self.config.max_action_dim)
            check_cameras(observation, self.config.cameras)
            for key, image in observation.images.items():
                check_image(image, f"camera {key!r}")
        except ValueError as error:
            raise ObservationError(str(error)) from error
