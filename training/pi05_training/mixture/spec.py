"""A mixture as a YAML file, and how it is opened.

    sources:
      - {name: MM, data: kitchen, weight: 4, control_mode: joint, outcome: success}
      - {name: HL, data: kitchen, weight: 1}              # kitchen/boxes.jsonl
      - {name: WD, data: web, weight: 1}                  # web/samples.jsonl

A dataset's folder is a mixture of one source. Paths are relative to the YAML file; docs/mixture.md has every key.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pi05_model.prompts import ControlMode
from pi05_ros.contract import Contract, load_contract
from pi05_training.augment import Augmentation
from pi05_training.data.episode import DatasetError
from pi05_training.mixture.example import LOSSES, Loss
from pi05_training.mixture.high_level import HighLevelSource
from pi05_training.mixture.lines import explain
from pi05_training.mixture.mixture import Mixture
from pi05_training.mixture.sources import RobotOptions, RobotSource, Source
from pi05_training.mixture.web import VerbalSource, WebSource

Kind = Literal["robot", "high_level", "web", "verbal"]
KINDS: dict[str, Kind] = {
    "MM": "robot",
    "ME": "robot",
    "CE": "robot",
    "HL": "high_level",
    "WD": "web",
    "VI": "verbal",
}
"""Kind of a source that bears one of the names of arXiv 2504.16054, or begins with it ("MM-kitchen")."""
_OWN_LOSSES: dict[Kind, tuple[Loss, ...]] = {
    "robot": LOSSES,
    "high_level": ("text",),
    "web": ("text",),
    "verbal": ("text",),
}
_ROBOT_KEYS = ("entries", "action_entries", "cameras", "outcome", "max_episode_s", "fps", "instructions")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


class SourceSpec(BaseModel):
    """One source of a mixture.

    Attributes:
        name: MM, ME, CE, HL, WD, VI, or any other with a kind.
        kind: what it is; by default what the name says.
        data: one folder, or several that are taken as one.
        weight: share of the draws, relative to the others'.
        losses: what is learned from it; by default all that the kind carries.
        control_mode: what the actions are targets of; goes into the prompt.
        entries, action_entries, cameras, outcome, max_episode_s, fps, instructions: of `RobotOptions`.
        boxes: high_level, labels; by default boxes.jsonl in the folder.
        camera: high_level and web, model key of the image that boxes are in, or that a picture stands for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    kind: Kind
    data: Annotated[tuple[Path, ...], BeforeValidator(_listed), Field(min_length=1)]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    losses: tuple[Loss, ...]
    control_mode: ControlMode | None = None
    entries: tuple[str | None, ...] | dict[str, str | None] | None = None
    action_entries: tuple[str | None, ...] | dict[str, str | None] | None = None
    cameras: dict[str, str] | None = None
    outcome: Literal["success", "failure"] | None = None
    max_episode_s: Annotated[float, Field(gt=0)] | None = None
    fps: Annotated[float, Field(gt=0)] | None = None
    instructions: Path | None = None
    boxes: Path | None = None
    camera: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, said: Any) -> Any:
        """Take the kind from the name, and the losses from the kind."""
        if not isinstance(said, dict):
            return said
        filled = dict(said)
        name = str(filled.get("name", ""))
        kind = filled.setdefault("kind", KINDS.get(name, KINDS.get(name.partition("-")[0])))
        if kind is None:
            raise ValueError(f"name {name!r} does not say the kind; add kind: {', '.join(_OWN_LOSSES)}")
        if kind in _OWN_LOSSES:
            filled.setdefault("losses", _OWN_LOSSES[kind])
        return filled

    @model_validator(mode="after")
    def _keys_fit(self) -> "SourceSpec":
        allowed = set(_OWN_LOSSES["robot"] if self.kind == "high_level" else _OWN_LOSSES[self.kind])
        if not self.losses or not set(self.losses) <= allowed:
            raise ValueError(f"losses {list(self.losses)}: a source of kind {self.kind} carries {sorted(allowed)}")
        robot = self.kind in ("robot", "high_level")
        wrong = [key for key in _ROBOT_KEYS if getattr(self, key) is not None and not robot]
        wrong += ["boxes"] if self.boxes is not None and self.kind != "high_level" else []
        wrong += ["camera"] if self.camera is not None and self.kind not in ("high_level", "web") else []
        wrong += ["control_mode"] if self.control_mode is not None and self.kind == "web" else []
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: a source of kind {self.kind} does not have this key")
        if not robot and len(self.data) > 1:
            raise ValueError(f"data: a source of kind {self.kind} is one folder; make it several sources")
        return self


class MixtureSpec(BaseModel):
    """The YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> "MixtureSpec":
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"name {', '.join(twice)} is there twice; write {twice[0]}-a and {twice[0]}-b")
        return self


def read_spec(path: Path) -> MixtureSpec:
    """Read a mixture's YAML file; its paths come back relative to where it lies. A folder is one source.

    Raises:
        DatasetError: there is no such file, or it is not valid; names the key, the value and what is valid.
    """
    if path.is_dir():
        return MixtureSpec.model_validate({"sources": [{"name": "MM", "data": path}]})
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such dataset folder or mixture file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    try:
        spec = MixtureSpec.model_validate(said)
    except ValidationError as error:
        keys = ", ".join(SourceSpec.model_fields)
        raise DatasetError(f"{path}: {explain(error)}. Keys of a source: {keys}") from error
    return spec.model_copy(update={"sources": tuple(_beside(source, path.parent) for source in spec.sources)})


def open_mixture(
    path: Path | str,
    losses: Collection[str] = LOSSES,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    size: int = 224,
    horizon: int | None = None,
    contract: Contract | None = None,
    instructions: Path | None = None,
) -> Mixture:
    """Open a mixture, or one dataset as a mixture of one.

    Args:
        path: YAML file, or a dataset's folder.
        losses: what is trained; a source that carries none of them is left out, and says so in the report.
        seed, augmentation, size: of `Mixture`.
        horizon: H, rows of a chunk; None takes the contract's.
        contract: the robot; None takes the package's own.
        instructions: instruction JSON of the folder datasets that name none of their own.

    Raises:
        DatasetError: see `read_spec` and the sources; everything that can be wrong with a whole source is found here.
    """
    contract = contract or load_contract()
    unknown = sorted(set(losses) - set(LOSSES))
    if unknown or not losses:
        raise DatasetError(f"losses {sorted(losses)}: expected some of {', '.join(LOSSES)}")
    specs = read_spec(Path(path)).sources
    used = [spec for spec in specs if set(spec.losses) & set(losses)]
    left_out = [
        f"{s.name}: carries {', '.join(s.losses)}, not {', '.join(sorted(losses))}" for s in specs if s not in used
    ]
    if not used:
        raise DatasetError(f"{path}: nothing to learn from: {'; '.join(left_out)}")
    opened = [
        open_source(spec, frozenset(losses), contract, horizon or contract.rates.chunk_steps, instructions)
        for spec in used
    ]
    return Mixture(opened, seed, augmentation, size, left_out)


def open_source(
    spec: SourceSpec, losses: frozenset[str], contract: Contract, horizon: int, instructions: Path | None = None
) -> Source:
    """Open a source, with those of its losses that are trained."""
    wanted = frozenset(spec.losses) & losses
    folder = spec.data[0]
    camera = spec.camera or next(iter(contract.cameras.values())).model_key
    _check_camera(spec, camera, contract)
    options = RobotOptions(
        control=spec.control_mode,
        **{key: getattr(spec, key) for key in _ROBOT_KEYS if key != "instructions"},
        instructions=spec.instructions or instructions,
    )
    robot = (spec.name, spec.weight, wanted, spec.data, contract, horizon, options)
    ways: dict[Kind, Callable[[], Source]] = {
        "robot": lambda: RobotSource(*robot),
        "high_level": lambda: HighLevelSource(*robot, boxes=spec.boxes, camera=camera),
        "web": lambda: WebSource(spec.name, spec.weight, folder, camera),
        "verbal": lambda: VerbalSource(spec.name, spec.weight, folder, contract, spec.control_mode),
    }
    return ways[spec.kind]()


def _check_camera(spec: SourceSpec, camera: str, contract: Contract) -> None:
    known = [one.model_key for one in contract.cameras.values()]
    wrong = sorted({camera, *(spec.cameras or {}).values()} - set(known))
    if wrong:
        raise DatasetError(
            f"source {spec.name}: no camera {', '.join(wrong)} in the contract; it has: {', '.join(known)}"
        )


def _beside(source: SourceSpec, folder: Path) -> SourceSpec:
    paths = {key: folder / value for key in ("boxes", "instructions") if (value := getattr(source, key)) is not None}
    return source.model_copy(update={"data": tuple(folder / path for path in source.data), **paths})
