"""Every topic and service name of the graph, the only place that spells them.

Names are relative, so that a namespace moves the whole robot; `/diagnostics` and `/clock` are global by convention.
"""

from pi05_ros.contract import Contract

JOINT_STATES = "joint_states"
ODOM = "odom"
STATE = "state"
TASK = "task"
SUBTASK = "subtask"
# What happened during an episode, in words (a slip, a person stepped in); recorded, heard by nobody.
EVENT = "event"
ACTION_CHUNK = "action_chunk"
# What a policy would have said; nothing that moves the robot listens here.
ACTION_CHUNK_DRY_RUN = "action_chunk_dry_run"
# Input of teleoperation: a leader arm's joints, a gamepad or keyboard.
LEADER, JOY = "leader/joint_states", "joy"
EFFORT_COMMANDS = "effort_controller/commands"
CMD_VEL = "base_controller/cmd_vel"
DIAGNOSTICS = "/diagnostics"
CLOCK = "/clock"

# Services, private to the node that offers them.
RECORD_START, RECORD_STOP, RECORD_DISCARD, RECORD_MARK = "~/start", "~/stop", "~/discard", "~/mark"
SIM_RESET, SIM_SUCCESS = "~/reset", "~/success"
CONTROLLER_STOP, CONTROLLER_RESET = "~/stop", "~/reset"


def camera_image(name: str) -> str:
    """Return the topic of a camera's JPEG images (sensor_msgs/CompressedImage), name as in the contract."""
    return f"cameras/{name}/image/compressed"


def camera_raw(name: str) -> str:
    """Return the topic of a camera's raw images (sensor_msgs/Image), published only on request."""
    return f"cameras/{name}/image"


def camera_images(contract: Contract) -> dict[str, str]:
    """Return the JPEG topic of every camera of the contract, by camera name."""
    return {name: camera_image(name) for name in contract.cameras}
