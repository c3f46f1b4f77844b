"""What sticks, buttons and keys ask for. Free of rclpy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIDES = ("left", "right")


class TeleopError(ValueError):
    """Input that cannot be understood; the message names what is wrong with it."""


@dataclass(frozen=True)
class JogCommand:
    """What sticks and keys ask for, every number in [-1, 1].

    Attributes:
        target: "base", or the side of the tool that moves.
        linear: x forward, y left, z up, in the frame of the base; of the base only x and y count.
        angular: about the same axes; of the base only z counts.
        torso: lift.
        grip: 1 close, -1 open, 0 as it is; of the tool that moves.
    """

    target: str = "base"
    linear: tuple[float, float, float] = (0.0, 0.0, 0.0)
    angular: tuple[float, float, float] = (0.0, 0.0, 0.0)
    torso: float = 0.0
    grip: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TeleopError: unknown target, or a number that is not finite or beyond ±1.
        """
        if self.target not in ("base", *SIDES):
            raise TeleopError(f"jog target {self.target!r} is not valid; valid: base, {', '.join(SIDES)}")
        numbers = np.array([*self.linear, *self.angular, self.torso])
        if not (np.abs(numbers) <= 1.0 + 1e-6).all():
            raise TeleopError(f"jog values {numbers.tolist()} are not valid; valid: numbers in [-1, 1]")


# A gamepad as Linux and joy_node number it (Xbox layout); a keyboard speaks the same.
LEFT_X, LEFT_Y, RIGHT_X, RIGHT_Y, CROSS_X, CROSS_Y = 0, 1, 3, 4, 6, 7
BUTTON_A, BUTTON_B, BUTTON_LB, BUTTON_RB = 0, 1, 4, 5
AXES, BUTTONS = 8, 11
DEAD_ZONE = 0.08


def jog_from_joy(axes: Sequence[float], buttons: Sequence[int]) -> JogCommand:
    """Return what a gamepad asks for (sensor_msgs/Joy; axes left and up are positive).

    Sticks drive the base: left stick x and y, right stick turns, cross lifts. With a shoulder button held they move
    that side's tool: left stick x and y, right stick up, down and about the vertical, cross pitch and roll; A closes
    the gripper, B opens it.

    Raises:
        TeleopError: fewer axes or buttons than such a gamepad has.
    """
    if len(axes) < AXES or len(buttons) < BUTTON_RB + 1:
        raise TeleopError(
            f"joy: {len(axes)} axes and {len(buttons)} buttons; needed: {AXES} axes and {BUTTON_RB + 1} buttons"
        )
    stick = [0.0 if abs(v) < DEAD_ZONE or not np.isfinite(v) else float(np.clip(v, -1.0, 1.0)) for v in axes]
    side = "left" if buttons[BUTTON_LB] else "right" if buttons[BUTTON_RB] else ""
    if not side:
        linear, angular = (stick[LEFT_Y], stick[LEFT_X], 0.0), (0.0, 0.0, stick[RIGHT_X])
        return JogCommand("base", linear, angular, stick[CROSS_Y])
    linear = (stick[LEFT_Y], stick[LEFT_X], stick[RIGHT_Y])
    angular = (stick[CROSS_X], -stick[CROSS_Y], stick[RIGHT_X])
    return JogCommand(side, linear, angular, 0.0, bool(buttons[BUTTON_A]) - bool(buttons[BUTTON_B]))
