"""The instruction JSON of a folder dataset: which folder carries out which task and subtask.

    {"high_level_task": …,
     "task_instructions": [{"stage", "high_level_task", "subtask", "text"}],
     "tasks": {folder: {"text", "subtasks": {folder: {"text"}}}}}

Names of folders made here can be turned back into their text (`folder_name`, `folder_text`), and the JSON keeps the
text as well, so that a name that had to be cut loses nothing.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pi05_training.data.episode import DatasetError

FILE = "instructions.json"
# Other names under which the file is found, in this order.
_NAMES = (FILE, "instruction.json", "instruction_json.json")
# Files of ours that lie beside it.
_OURS = ("report.json", "norm_stats.json")
_LONGEST_BYTES = 180
_EMPTY = "%none"


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a stretch of frames carries out: high-level task, subtask, and the original low-level instruction."""

    task: str
    subtask: str
    text: str


@dataclass
class Instructions:
    """Contents of the file.

    Attributes:
        high_level_task: of the whole dataset; "" when the file does not say.
        stages: by stage number.
        tasks: (task text, {subtask folder: subtask text}) by task folder.
        source: the file, for messages.
    """

    high_level_task: str = ""
    stages: dict[int, Instruction] = field(default_factory=dict)
    tasks: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    source: str = ""

    def of_stage(self, folder: Path, stage: int) -> Instruction:
        """Return what a stage folder (layout B) carries out.

        Raises:
            DatasetError: the file does not have the stage.
        """
        if stage not in self.stages:
            known = ", ".join(map(str, sorted(self.stages))) or "none"
            where = self.source or f"{folder.parent}: no {FILE}"
            raise DatasetError(
                f"{folder}: {where}: task_instructions has no entry with stage {stage} (it has: {known}); "
                'add {"stage": …, "high_level_task": …, "subtask": …}'
            )
        return self.stages[stage]

    def of_folders(self, folder: Path) -> Instruction:
        """Return what a folder task/subtask (layout A) carries out; where the file is silent, its name stands for it.

        Raises:
            DatasetError: the file lists the task but not this subtask, or a name was cut and the file does not help.
        """
        task_name, sub_name = folder.parent.name, folder.name
        known = self.tasks.get(task_name)
        if known is not None and known[1] and sub_name not in known[1]:
            raise DatasetError(
                f"{folder}: {self.source}: tasks.{task_name}.subtasks has no key {sub_name!r}; "
                f"it has: {', '.join(known[1])}"
            )
        task = known[0] if known is not None and known[0] else self._name_or_whole(folder.parent)
        subtask = known[1][sub_name] if known is not None and sub_name in known[1] else folder_text(folder)
        texts = {(s.task, s.subtask): s.text for s in self.stages.values()}
        return Instruction(task, subtask, texts.get((task, subtask), subtask))

    def _name_or_whole(self, folder: Path) -> str:
        return self.high_level_task if self.high_level_task and not self.tasks else folder_text(folder)

    def to_json(self) -> dict[str, Any]:
        """Return the file's contents."""
        data: dict[str, Any] = {"high_level_task": self.high_level_task} if self.high_level_task else {}
        data["task_instructions"] = [
            {"stage": stage, "high_level_task": entry.task, "subtask": entry.subtask, "text": entry.text}
            for stage, entry in sorted(self.stages.items())
        ]
        data["tasks"] = {
            name: {"text": text, "subtasks": {sub: {"text": said} for sub, said in subtasks.items()}}
            for name, (text, subtasks) in self.tasks.items()
        }
        return data

    def write(self, path: Path) -> None:
        """Write the file, all or nothing."""
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)


def read_instructions(path: Path) -> Instructions:
    """Read an instruction JSON.

    Raises:
        DatasetError: not readable, or a value is missing or of the wrong type; names file and key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: expected an object with high_level_task, task_instructions, tasks")
    whole = _text(path, data, "high_level_task", "high_level_task", "")
    found = Instructions(high_level_task=whole, source=str(path))
    for index, entry in enumerate(_list(path, data)):
        key = f"task_instructions[{index}]"
        stage = entry.get("stage")
        if not isinstance(stage, int) or isinstance(stage, bool):
            raise DatasetError(f"{path}: {key}.stage: {stage!r} is not a number")
        if stage in found.stages:
            raise DatasetError(f"{path}: {key}.stage: {stage} is listed twice")
        subtask = _text(path, entry, "subtask", f"{key}.subtask")
        task = _text(path, entry, "high_level_task", f"{key}.high_level_task", whole or None)
        found.stages[stage] = Instruction(task, subtask, _text(path, entry, "text", f"{key}.text", "") or subtask)
    for name, about in _mapping(path, data.get("tasks", {}), "tasks").items():
        subtasks = _mapping(path, about.get("subtasks", {}), f"tasks.{name}.subtasks")
        texts = {
            sub: _text(path, entry, "text", f"tasks.{name}.subtasks.{sub}.text") for sub, entry in subtasks.items()
        }
        found.tasks[name] = (_text(path, about, "text", f"tasks.{name}.text", whole), texts)
    return found


def find_instructions(root: Path, given: Path | None = None) -> Instructions:
    """Read the instruction JSON of a dataset: the given file, one of the usual names, or the only .json in the root."""
    if given is not None:
        return read_instructions(given)
    for name in _NAMES:
        if (root / name).is_file():
            return read_instructions(root / name)
    others = [path for path in sorted(root.glob("*.json")) if path.name not in _OURS]
    return read_instructions(others[0]) if len(others) == 1 else Instructions()


def folder_name(text: str) -> str:
    """Return a name for a folder that `folder_text` turns back into the text.

    Spaces become "_"; what a file system or a shell could stumble over is percent-encoded. A text that is too long for
    a file name is cut and ends in "%~" and a hash: only the instruction JSON still knows it.
    """
    if not text:
        return _EMPTY
    name = "".join(_safe(character) for character in text)
    name = f"%{ord(name[0]):02X}{name[1:]}" if name[0] == "." else name
    if len(name.encode()) <= _LONGEST_BYTES:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    kept = name.encode()[: _LONGEST_BYTES - 16].decode(errors="ignore")
    return f"{re.sub('%[0-9A-F]?$', '', kept)}%~{digest}"


def folder_text(folder: Path) -> str:
    """Return the text that a folder's name stands for.

    Raises:
        DatasetError: the name was cut, so that only the instruction JSON can tell.
    """
    if "%~" in folder.name:
        raise DatasetError(f"{folder}: the name is cut; {FILE} has to say its text, under the key {folder.name!r}")
    return "" if folder.name == _EMPTY else unquote(folder.name.replace("_", " "))


def _safe(character: str) -> str:
    if character == " ":
        return "_"
    # A letter that a file system may store in another normal form (NFC, NFD) would not come back as it was.
    if (character.isalnum() and unicodedata.normalize("NFD", character) == character) or character in "-+,.":
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _list(path: Path, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = data.get("task_instructions", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DatasetError(f"{path}: task_instructions: expected a list of objects")
    return entries


def _mapping(path: Path, value: Any, key: str) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise DatasetError(f"{path}: {key}: expected an object of objects")
    return value


def _text(path: Path, data: Mapping[str, Any], key: str, where: str, otherwise: str | None = None) -> str:
    value = data.get(key, otherwise)
    if not isinstance(value, str):
        raise DatasetError(f"{path}: {where}: {'is missing' if value is None else f'{value!r} is not a text'}")
    return value
