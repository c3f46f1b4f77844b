"""A debug-size policy with random weights, and observations for it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pi05_model.batch import TrainBatch
from pi05_model.config import PRESETS
from pi05_model.normalize import NormStats
from pi05_model.observation import Observation
from pi05_model.pi05 import Pi05
from pi05_model.preprocess import Preprocessor
from pi05_model.tokenizer import PolicyTokenizer

DIM = 18
SUBTASKS = ("pick up the red cube", "pick up the blue cube", "place the cube in the bin", "open the left gripper")
CONFIG = PRESETS["pi05_debug"]

MakeObservation = Callable[..., Observation]


def random_model(seed: int = 0) -> Pi05:
    """Return a network whose time modulations are not zero, unlike those of a new one."""
    torch.manual_seed(seed)
    model = Pi05(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".dense." in name:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PolicyTokenizer:
    return PolicyTokenizer.default()


@pytest.fixture(scope="session")
def stats() -> dict[str, NormStats]:
    rng = np.random.default_rng(0)
    return {
        "state": NormStats.from_samples(rng.normal(size=(500, DIM))),
        "actions": NormStats.from_samples(rng.normal(0.2, 0.7, size=(500, DIM))),
    }


@pytest.fixture
def preprocessor(stats: dict[str, NormStats], tokenizer: PolicyTokenizer) -> Preprocessor:
    return Preprocessor(CONFIG, stats, tokenizer)


@pytest.fixture
def model() -> Pi05:
    return random_model()


@pytest.fixture
def observe() -> MakeObservation:
    """Return a maker of random observations; `cameras` names the ones that are present."""

    def make(seed: int = 0, cameras: tuple[str, ...] = CONFIG.cameras, stamp_ns: int | None = None) -> Observation:
        rng = np.random.default_rng(seed)
        images = {key: rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for key in CONFIG.cameras}
        state = rng.normal(size=DIM)
        stamp_ns = seed if stamp_ns is None else stamp_ns
        return Observation(stamp_ns, {key: images[key] for key in cameras}, state)

    return make


@pytest.fixture
def batch(preprocessor: Preprocessor) -> TrainBatch:
    """Four samples; the back camera of one is missing, and one chunk ends early."""
    rng = np.random.default_rng(1)
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2, 3] = False
    is_pad = np.zeros((4, 50), dtype=bool)
    is_pad[1, 30:] = True
    return preprocessor.train_batch(
        torch.randint(0, 256, (4, 4, 224, 224, 3), dtype=torch.uint8, generator=generator),
        mask,
        rng.normal(size=(4, DIM)),
        ["clear the table"] * 4,
        list(SUBTASKS),
        rng.normal(size=(4, 50, DIM)),
        is_pad,
    )
