"""How the controller is tuned: one frozen dataclass, whose fields become the node's parameters."""

from dataclasses import dataclass
from typing import Annotated

from pi05_ros.config import ConfigError, Doc, Range, fields_of

Frequency = Range(1.0, 200.0)


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """Tuning of `PdController` and `ChunkExecutor`. Limits of the robot itself come from its description.

    Raises:
        ConfigError: a value outside its range; names field, value and what is valid.
    """

    arm_frequency: Annotated[float, Doc("natural frequency w of arm joints, Kp = I w^2 [rad/s]"), Frequency] = 40.0
    lift_frequency: Annotated[float, Doc("the same for prismatic joints but grippers [rad/s]"), Frequency] = 40.0
    gripper_frequency: Annotated[float, Doc("the same for grippers [rad/s]"), Frequency] = 80.0
    damping_ratio: Annotated[float, Doc("damping ratio z of every joint, Kd = 2 z I w"), Range(0.1, 5.0)] = 1.0
    grip_force: Annotated[
        float, Doc("largest force of a gripper joint; the description may cap it lower [N]"), Range(0.1, 500.0)
    ] = 15.0
    soft_margin_rad: Annotated[
        float, Doc("soft limits lie this far inside a revolute joint's limits [rad]"), Range(0.0, 0.5)
    ] = 0.01
    soft_margin_m: Annotated[float, Doc("the same for prismatic joints but grippers [m]"), Range(0.0, 0.1)] = 0.0
    jump_rad: Annotated[
        float,
        Doc("a chunk whose first fresh row is further from the measured position is refused [rad]"),
        Range(1e-3, 6.3),
    ] = 0.8
    jump_m: Annotated[float, Doc("the same for prismatic joints but grippers [m]"), Range(1e-3, 2.0)] = 0.08
    execute_steps: Annotated[
        int, Doc("steps s to play between two inferences; a chunk older than H - s steps is stale"), Range(0, 500)
    ] = 10
    future_tolerance_s: Annotated[
        float, Doc("a chunk stamped further ahead of the clock is refused [s]"), Range(0.0, 1.0)
    ] = 0.02
    bridge_shortest_s: Annotated[
        float, Doc("shortest time in which a difference between two chunks dies out [s]"), Range(5e-3, 1.0)
    ] = 0.04
    bridge_longest_s: Annotated[
        float, Doc("longest time in which a difference between two chunks dies out [s]"), Range(5e-3, 2.0)
    ] = 0.5
    tracking_limit_rad: Annotated[
        float, Doc("tracking error of a revolute joint that latches a software stop [rad]"), Range(1e-3, 6.3)
    ] = 0.35
    tracking_limit_m: Annotated[float, Doc("the same for prismatic joints but grippers [m]"), Range(1e-3, 2.0)] = 0.08
    stale_after_s: Annotated[
        float, Doc("joint readings older than this latch a software stop [s]"), Range(2e-3, 1.0)
    ] = 0.05
    longest_tick_s: Annotated[
        float, Doc("a later tick moves the reference no further than one this late [s]"), Range(2e-3, 1.0)
    ] = 0.02

    def __post_init__(self) -> None:
        for spec in fields_of(type(self)):
            spec.parse(getattr(self, spec.name))
        if self.bridge_shortest_s > self.bridge_longest_s:
            raise ConfigError(
                f"bridge_shortest_s: {self.bridge_shortest_s} is not valid; valid: at most bridge_longest_s "
                f"({self.bridge_longest_s})"
            )
