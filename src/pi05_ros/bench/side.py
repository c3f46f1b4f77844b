"""One side of a comparison: a process that stays warm and answers timed calls, and the inputs that all sides share."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pi05_model.config import ModelConfig
from pi05_ros.bench import peer_lerobot

ACTION_DIM = 18
LOG_LINES = 12


class BenchError(RuntimeError):
    """A benchmark cannot run; the message says which part failed and what it said last."""


class Side:
    """A child process that answers requests. A context manager.

    Args:
        name: what figures and messages call it.
        command: how to start it.
        cpus: it runs on these alone, with as many threads.
        isolated: hide this process's PYTHONPATH from it.
    """

    def __init__(self, name: str, command: Sequence[str], cpus: Sequence[int], isolated: bool = False) -> None:
        self.name = name
        threads = str(len(cpus))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if isolated:
            environment.pop("PYTHONPATH", None)
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )
        with contextlib.suppress(ProcessLookupError):  # gone already: the first call tells why
            os.sched_setaffinity(self._process.pid, cpus)  # threads inherit it, and none exists yet

    @classmethod
    def own(cls, cpus: Sequence[int]) -> "Side":
        """Start this project's side."""
        return cls("ours", [sys.executable, "-m", "pi05_ros.bench.own"], cpus)

    @classmethod
    def lerobot(cls, python: str, cpus: Sequence[int]) -> "Side":
        """Start lerobot's side with a Python that has it."""
        # -P: the folder of the script must not become a place to import from.
        return cls("lerobot", [python, "-P", peer_lerobot.__file__], cpus, isolated=True)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def call(self, op: str, **arguments: Any) -> dict[str, float]:
        """Send a request and wait for its result.

        Raises:
            BenchError: the process reported an error, or died.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(f"{self.name} ended with status {process.wait()} during {op!r}:\n{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.name} failed at {op!r}: {answer['error']}")
        result: dict[str, float] = answer["ok"] or {}
        return result

    def _last_words(self) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().splitlines()[-LOG_LINES:])


def draw_inputs(path: Path, config: ModelConfig, batch: int, prompt_tokens: int, seed: int = 0) -> None:
    """Store random inputs of sampling and training, under neutral names.

    Args:
        path: file to write.
        config: sizes; the images are those of `expert_cameras`.
        batch: samples.
        prompt_tokens: real tokens of the prompt; the rest up to `max_prompt_tokens` is padding.
        seed: of all numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    cameras, size = len(config.expert_cameras), config.image_size
    shape = (batch, config.horizon, config.max_action_dim)
    actions = torch.randn(shape, generator=generator)
    actions[..., ACTION_DIM:] = 0
    mask = torch.arange(config.max_prompt_tokens) < prompt_tokens
    tokens = torch.randint(3, config.vocab_size, (batch, config.max_prompt_tokens), generator=generator)
    inputs = {
        "images": torch.rand((batch, cameras, 3, size, size), generator=generator) * 2 - 1,
        "image_mask": torch.ones(batch, cameras, dtype=torch.bool),
        "tokens": tokens * mask,
        "token_mask": mask.expand(batch, -1).contiguous(),
        "noise": torch.randn(shape, generator=generator),
        "actions": actions,
        "time": torch.rand(batch, generator=generator),
        "action_dim": torch.tensor(ACTION_DIM),
    }
    torch.save(inputs, path)
