"""The contract file is the one place that says what the robot is; these tests hold its loader to clear errors."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from pi05_ros.contract import ContractError, check_joints, load_contract
from pi05_ros.paths import share_file


def write(tmp_path: Path, edit: dict[str, object]) -> Path:
    raw = yaml.safe_load(share_file("config/contract.yaml").read_text())
    path = tmp_path / "contract.yaml"
    path.write_text(yaml.safe_dump({**raw, **edit}))
    return path


def test_order_is_the_designs() -> None:
    contract = load_contract()
    assert contract.dim == 18
    assert contract.names[:7] == (*tuple(f"left_joint{i}" for i in range(1, 7)), "left_gripper")
    assert contract.names[14:] == ("torso_lift", "base_vx", "base_vy", "base_wz")
    assert contract.cameras_of("expert") == ("front", "left_wrist", "right_wrist")
    assert contract.cameras_of("planner") == ("front", "left_wrist", "right_wrist", "back")


def test_joint_units_round_trip() -> None:
    contract = load_contract()
    vector = np.random.default_rng(0).uniform(0, 1, (5, contract.dim))
    joints = contract.to_joint_units(vector)
    assert joints[0, 6] == pytest.approx(0.045 * (1 - vector[0, 6]))
    np.testing.assert_allclose(contract.from_joint_units(joints, vector[:, contract.base_index]), vector, atol=1e-12)


def test_unknown_joint_is_named_with_the_valid_ones() -> None:
    with pytest.raises(ContractError, match=r"unknown joint 'torso_lift'; robot.urdf has: left_joint1"):
        check_joints(load_contract(), load_contract().joint_names[:-1], "robot.urdf")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"rates": {"action_hz": -1}}, r"contract.yaml: rates.action_hz: .*greater than 0 \(value: -1\)"),
        ({"colour": "red"}, r"contract.yaml: colour: Extra inputs are not permitted"),
        ({"vector": [{"group": "a", "kind": "position", "unit": "rad", "names": ["j", "j"]}]}, "'j' is listed twice"),
        ({"vector": [{"group": "g", "kind": "gripper", "unit": "fraction", "names": ["j"]}]}, "`open` and `closed`"),
        ({"vector": [{"group": "g", "kind": "wheel", "unit": "m", "names": ["j"]}]}, "'position', 'gripper' or 'vel"),
        ({"cameras": {"front": {"model_key": "x", "frame": "f", "seen_by": ["cat"]}}}, "'planner' or 'expert'"),
    ],
)
def test_errors_name_file_key_value(tmp_path: Path, edit: dict[str, object], told: str) -> None:
    with pytest.raises(ContractError, match=told):
        load_contract(write(tmp_path, edit))


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="cannot be read"):
        load_contract(tmp_path / "none.yaml")


def test_unknown_group_lists_the_valid_ones() -> None:
    with pytest.raises(KeyError, match=r"no group 'leg'.*left_arm, left_gripper"):
        load_contract().slice("leg")
