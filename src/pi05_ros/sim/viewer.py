"""The simulator with MuJoCo's window beside it."""

import time
from typing import Any

import mujoco.viewer

from pi05_ros.contract import Contract
from pi05_ros.sim.scene import Layout
from pi05_ros.sim.simulator import Simulator

FRAME_S = 1 / 30


class ViewedSimulator(Simulator):
    """A simulator that shows itself; closing the window does not end it.

    Args:
        contract: see Simulator.

    Raises:
        RuntimeError: there is no display.
    """

    def __init__(self, contract: Contract) -> None:
        self._viewer: Any = None
        self._shown = 0.0
        super().__init__(contract)

    def reset(self, seed: int, layout: Layout | None = None) -> None:
        """Start a new episode, and show it in a new window."""
        self._close_viewer()
        super().reset(seed, layout)
        self._viewer = mujoco.viewer.launch_passive(self.model, self.data)

    def step(self) -> None:
        """Advance the physics, and the window about 30 times a second."""
        super().step()
        if time.monotonic() - self._shown > FRAME_S and self._viewer.is_running():
            self._shown = time.monotonic()
            self._viewer.sync()

    def close(self) -> None:
        """Close the window too."""
        self._close_viewer()
        super().close()

    def _close_viewer(self) -> None:
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None
