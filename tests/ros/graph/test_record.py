"""`pi05 record` as its user runs it: unattended, by flags, by keyboard, and repairing."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rosbags.highlevel import AnyReader

from pi05_ros.bagfile import BagFile
from pi05_ros.record import main
from pi05_ros.record_auto import SOURCE, collected, remove_incomplete
from pi05_ros.repair import State, bag_notes, find_bags

COMMAND = [sys.executable, "-m", "pi05_ros", "record"]


def environment(domain: int) -> dict[str, str]:
    # A domain of its own: graphs of other tests must not answer.
    return {**os.environ, "ROS_DOMAIN_ID": str((domain + 37) % 100 + 1), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


def record(domain: int, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], env=environment(domain), capture_output=True, text=True, check=False
    )


def until(predicate: Callable[[], object], seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not predicate() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(predicate())


@pytest.mark.ros
def test_unattended_episodes_and_a_second_run(tmp_path: Path, domain: int) -> None:
    bags = tmp_path / "bags"
    common = ("--out", bags, "--seed", 5, "--limit", 1.5)  # too short to clear a table: failures, and kept as such
    first = record(domain, "--auto", 1, *common)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "1 of 1 episodes" in first.stdout and "0 of them successful" in first.stdout
    second = record(domain, "--auto", 2, *common)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 of 2 episodes are there, 1 to record" in second.stdout
    assert sorted(collected(bags, "clear the table")) == [5, 6]
    third = record(domain, "--auto", 2, *common)
    assert third.returncode == 0 and "0 to record" in third.stdout
    for folder, state in find_bags(bags):
        assert state == State.FINISHED
        notes = bag_notes(folder)
        assert (notes["outcome"], notes["task"], notes["dropped"]) == ("failure", "clear the table", "0")
        seen: dict[str, list[Any]] = {}
        with AnyReader([folder]) as reader:
            for connection, _, data in reader.messages():
                seen.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
        # The scene's own subtasks only, said after the reset; frames and chunks of one scene.
        assert seen["/subtask"][0].data == "drive to the table"
        assert {message.data for message in seen["/task"]} == {"clear the table"}
        assert len(seen["/cameras/front/image/compressed"]) > 20
        assert len(seen["/action_chunk"]) >= 3


@pytest.mark.ros
def test_interrupted_and_cut_off(tmp_path: Path, domain: int) -> None:
    bags = tmp_path / "bags"
    process = subprocess.Popen(
        [*COMMAND, "--auto", "2", "--out", str(bags), "--limit", "60"], env=environment(domain), text=True
    )
    try:
        assert until(lambda: list(bags.glob("*/*.mcap")))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    # The recorder was ended in order and kept what it had; it does not count as an episode.
    assert collected(bags, "clear the table") == {}
    for folder, state in find_bags(bags):
        assert state == State.FINISHED
        assert bag_notes(folder)["outcome"] == "unknown"


class Keys:
    """`pi05 record` in a terminal."""

    def __init__(self, bags: Path, domain: int) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "--out", str(bags), "--task", "fold the towel"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment(domain), "TERM": "xterm", "COLUMNS": "200"},
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the terminal's other end has gone
                return
            if not data:
                return
            self.shown += data.decode(errors="replace")

    def press(self, keys: str, answer: str) -> None:
        shown = len(self.shown)
        os.write(self._master, keys.encode())
        assert until(lambda: answer in self.shown[shown:]), self.shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def keys(tmp_path: Path, domain: int) -> Iterator[Keys]:
    terminal = Keys(tmp_path / "bags", domain)
    yield terminal
    terminal.close()


@pytest.mark.ros
def test_keyboard(keys: Keys, tmp_path: Path, domain: int) -> None:
    assert until(lambda: "q quit" in keys.shown), keys.shown
    keys.press("s", "not done: missing: ")
    keys.press("y", "not done: not recording")
    # Another terminal talks to the same recorder.
    refused = record(domain, "--do", "discard")
    assert (refused.returncode, refused.stderr.strip()) == (1, "not recording")
    begun = record(domain, "--do", "start", "--allow-missing", "--notes", "operator=A. B.")
    assert begun.returncode == 0 and begun.stdout.strip().endswith("episode_000000")
    assert until(lambda: "episode_000000: recording" in keys.shown), keys.shown
    keys.press("mfold the left corner\n", "subtask: fold the left corner")
    keys.press("eslipped\n", "event: slipped")
    keys.press("y", "bags/episode_000000")
    keys.press("s", "bags/episode_000001")
    keys.press("d", "episode_000001 discarded")
    keys.press("q", "\n")
    assert keys.process.wait(timeout=60) == 0
    [(folder, state)] = find_bags(tmp_path / "bags")
    assert state == State.FINISHED
    notes = bag_notes(folder)
    assert (notes["outcome"], notes["operator"]) == ("success", "A. B.")
    with AnyReader([folder]) as reader:
        said = {
            c.topic: reader.deserialize(data, c.msgtype).data
            for c, _, data in reader.messages()
            if "String" in c.msgtype
        }
    assert said == {"/subtask": "fold the left corner", "/event": "slipped"}


def test_what_an_interrupted_run_left_is_recorded_again(tmp_path: Path) -> None:
    def leave(name: str, **notes: str) -> BagFile:
        told = {"source": SOURCE, "seed": "3", "task": "clear the table", **notes}
        return BagFile(tmp_path / name, told, ballast_bytes=0)

    leave("cut_off").abandon()
    leave("ended").finish({"outcome": "unknown"})
    leave("somebody_s", source="a person").abandon()
    leave("other_seed", seed="4").abandon()
    leave("other_task", task="wait").abandon()
    leave("good").finish({"outcome": "failure"})
    running = leave("running")
    removed = remove_incomplete(tmp_path, "clear the table", [3])
    assert sorted(folder.name for folder in removed) == ["cut_off", "ended"]
    assert not any(folder.exists() for folder in removed)
    assert list(collected(tmp_path, "clear the table")) == [3]
    running.abandon()


def test_repair_and_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repair", str(tmp_path)]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    for wrong, told in (
        (["--auto", "2", "--do", "start"], "--auto and --do exclude each other"),
        (["--auto", "-1"], "--auto -1 is no number of episodes"),
        (["--text", "x"], "--text belongs to --do mark or --do event"),
        (["--do", "mark"], "--do mark needs --text"),
    ):
        assert main(wrong) == 2
        assert told in capsys.readouterr().err


def test_the_keyboard_needs_a_terminal(tmp_path: Path, domain: int) -> None:
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        env=environment(domain),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no terminal to read keys from; use --do" in done.stderr
