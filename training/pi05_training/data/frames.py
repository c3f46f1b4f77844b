"""From a stream of messages to frames on the contract's grid, in constant memory.

What always holds:
  - What a frame shows is what `ObservationBuffer.select` gives at its stamp, the same code that the live nodes observe
    with; its action is what was commanded for one step later.
  - A frame leaves when every living source has passed it, so that the order of arrival changes nothing. A source that
    lags more than LAG_S behind the newest stamp is taken for dead; what it still says about frames that left is counted
    as late.
  - The frames of one part follow each other in steps of exactly one period. Where that is impossible (no usable
    observation, the clock jumped back, another task) a new part begins, on a grid of its own that starts at an image.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pi05_ros.contract import Contract
from pi05_ros.ingest import STATE, IngestConfig, ObservationBuffer, Selection, SourceRule
from pi05_ros.messages import Array, MessageError, decode_jpeg, encode_jpeg, fit, is_jpeg
from pi05_training.data.commands import Commands
from pi05_training.data.episode import Frame

NS = 1_000_000_000
# A source this far behind the newest stamp no longer holds the others up [s]. Live nodes forget what is older, too.
LAG_S = 1.0
# A stamp this far behind its own source's newest is a clock that jumped back, as it is for the live nodes [s].
JUMP_S = 1.0
# A longer gap in the stamps is a clock that was set, not lost data [s].
LONGEST_GAP_S = 600.0


@dataclass(frozen=True, slots=True)
class PartFrame:
    """A frame, the number of the part it belongs to, and the task in force."""

    part: int
    task: str
    frame: Frame


@dataclass
class SourceStats:
    """What was seen of one source ("state", or a camera's name).

    Attributes:
        messages: samples that came in.
        first_ns, last_ns: their first and newest stamp.
        longest_gap_s: longest time between two stamps in order.
        out_of_order: samples that came after a younger one.
        late: those of them that came after the frames they belong to had left.
        held: frames whose sample the frame before already had.
        missing: frames without the source, by reason.
        worst_age_s: greatest distance of a sample from its frame.
        refused: samples that could not be used, by reason.
        encoded_again: images that did not fit the contract and were fitted and encoded.
    """

    messages: int = 0
    first_ns: int = 0
    last_ns: int = 0
    longest_gap_s: float = 0.0
    out_of_order: int = 0
    late: int = 0
    held: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    worst_age_s: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    encoded_again: int = 0

    @property
    def rate_hz(self) -> float:
        """Mean rate over the time from first to last sample."""
        return (self.messages - 1) * NS / (self.last_ns - self.first_ns) if self.last_ns > self.first_ns else 0.0

    def saw(self, stamp_ns: int) -> None:
        """Count a sample."""
        if not self.messages:
            self.first_ns = self.last_ns = stamp_ns
        elif stamp_ns < self.last_ns:
            self.out_of_order += 1
        self.longest_gap_s = max(self.longest_gap_s, (stamp_ns - self.last_ns) / NS)
        self.messages += 1
        self.last_ns = max(self.last_ns, stamp_ns)


@dataclass
class FrameStats:
    """What was seen of a bag.

    Attributes:
        sources: by name.
        frames: frames that were made.
        dropped: grid points inside the recording without a frame, by reason.
        before_first_command: grid points before anything was commanded.
        without_task: grid points while there was no task, or it was withdrawn (an empty one).
        worst_skew_s: greatest distance between the stamps of two samples of one frame.
        clock_jumps: how often the clock ran backwards.
    """

    sources: dict[str, SourceStats]
    frames: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    before_first_command: int = 0
    without_task: int = 0
    worst_skew_s: float = 0.0
    clock_jumps: int = 0


class FrameMaker:
    """Takes messages as they come and gives frames.

    Args:
        contract: the robot.
        cameras: those that the recording has, a subset of the contract's.
        commands: what was commanded.
        task: task in force before the first message about it. Without a task there is no frame.
        rules: how samples are taken, by source; the defaults are those of the live nodes.
    """

    def __init__(
        self,
        contract: Contract,
        cameras: tuple[str, ...],
        commands: Commands,
        task: str = "",
        rules: Mapping[str, SourceRule] | None = None,
    ) -> None:
        self.contract, self.commands = contract, commands
        self.stats = FrameStats({source: SourceStats() for source in (STATE, *cameras)})
        self._cameras = cameras
        longest_s = max([LAG_S, *(rule.max_age_s for rule in (rules or {}).values())])
        self._config = IngestConfig(history_s=2 * LAG_S + 2 * longest_s, rules=dict(rules or {}))
        self._period = NS / contract.rates.action_hz
        self._step_ns = round(self._period)
        self._first_task = self._task = task
        self._part = -1
        self._restart()

    def _restart(self) -> None:
        self._buffer = ObservationBuffer(self.contract, self._cameras, self._config)
        self._texts: dict[str, list[tuple[int, str]]] = {"task": [(-(2**63), self._first_task)], "subtask": []}
        self._log_ns = -(2**63)
        self._newest: dict[str, int] = {}  # stamp by source
        self._origin: int | None = None  # stamp of the grid's first point
        self._not_before = -(2**63)  # the next grid begins here or later
        self._gap: tuple[int, str] | None = None  # where a stretch without frames began, and why
        self._index = 0
        self._open = False
        self._last: Selection | None = None
        self._encoded: dict[str, tuple[int, bytes]] = {}

    @property
    def state(self) -> Array | None:
        """Newest state [D]; None before the first."""
        newest = self._newest.get(STATE)
        chosen = None if newest is None else self._buffer.select(newest).state
        return None if chosen is None else chosen[1]

    def add_state(self, stamp_ns: int, vector: Array) -> Iterator[PartFrame]:
        """Add a state vector [D]; yields the frames that this completes."""
        if not np.isfinite(vector).all():
            self.stats.sources[STATE].refused["not finite"] += 1
            return
        yield from self._note(STATE, stamp_ns)
        self._buffer.add_state(stamp_ns, vector)
        if self._may_emit(STATE):
            yield from self._emit()

    def add_image(self, camera: str, stamp_ns: int, encoded: Any) -> Iterator[PartFrame]:
        """Add an encoded image; yields the frames that this completes."""
        yield from self._note(camera, stamp_ns)
        self._buffer.add_image(camera, stamp_ns, encoded)
        if self._may_emit(camera):
            yield from self._emit()

    def add_text(self, what: str, stamp_ns: int, text: str) -> None:
        """Add a "task" or "subtask", in force from its stamp on."""
        self._texts[what].append((stamp_ns, text))

    def received(self, log_ns: int) -> None:
        """Tell the time of receipt of the next message, in the clock of the stamps."""
        self._log_ns = max(self._log_ns, log_ns)

    def finish(self) -> Iterator[PartFrame]:
        """Give the frames that are still waiting; the recording is over."""
        yield from self._emit(over=True)
        self._end_gap(max(self._newest.values(), default=0))

    def _note(self, source: str, stamp_ns: int) -> Iterator[PartFrame]:
        newest = self._newest.get(source)
        if newest is not None and stamp_ns < newest - JUMP_S * NS:
            yield from self.finish()
            self.stats.clock_jumps += 1
            said = {what: texts[-1:] for what, texts in self._texts.items()}
            self._restart()
            self.commands.reset()
            # What was said stays in force, whatever the clock does.
            self._texts = {what: [(-(2**63), text) for _, text in texts] for what, texts in said.items()}
        elif self._origin is not None and stamp_ns <= self._grid(self._index - 1):
            self.stats.sources[source].late += 1
        self.stats.sources[source].saw(stamp_ns)
        self._newest[source] = max(stamp_ns, self._newest.get(source, stamp_ns))

    def _may_emit(self, source: str) -> bool:
        """Tell whether a sample of a source can have completed a frame: it has passed the frame that is due next."""
        return self._origin is None or self._newest[source] >= self._grid(self._index) + self._step_ns

    def _grid(self, index: int) -> int:
        assert self._origin is not None
        return self._origin + round(index * self._period)

    def _emit(self, over: bool = False) -> Iterator[PartFrame]:
        newest = self._newest
        if STATE not in newest:
            return
        latest = max(newest.values())
        passed = min(stamp for stamp in newest.values() if stamp >= latest - LAG_S * NS)
        while True:
            if self._origin is None:
                self._origin = self._find_origin(newest, latest, over)
                self._index = 0
                if self._origin is None:
                    return
            stamp_ns = self._grid(self._index)
            due_ns = stamp_ns + self._step_ns
            if over:
                ready = stamp_ns <= passed
            else:
                ready = (passed >= due_ns and self._log_ns >= due_ns) or latest > due_ns + 2 * LAG_S * NS
            if not ready:
                return
            self._index += 1
            yield from self._frame(stamp_ns, due_ns)

    def _find_origin(self, newest: Mapping[str, int], latest: int, over: bool) -> int | None:
        """Choose where a grid begins: at an image, once every source has begun, or when waiting longer is in vain."""
        firsts = {source: self._buffer.first_from(source, self._not_before) for source in newest}
        started = {source: stamp for source, stamp in firsts.items() if stamp is not None}
        if STATE not in started:
            return None
        begun = min(started.values())
        if len(started) <= len(self._cameras) and not over and latest < begun + LAG_S * NS:
            return None
        complete = max(stamp for stamp in started.values() if stamp <= begun + LAG_S * NS or stamp == started[STATE])
        images = {camera: self._buffer.first_from(camera, complete) for camera in self._cameras if camera in started}
        if None in images.values() and not over and latest < complete + LAG_S * NS:
            return None
        found = [stamp for stamp in images.values() if stamp is not None and stamp <= complete + LAG_S * NS]
        return found[0] if found else self._buffer.first_from(STATE, complete)

    def _frame(self, stamp_ns: int, due_ns: int) -> Iterator[PartFrame]:
        chosen = self._buffer.select(stamp_ns)
        images, missing = self._images(chosen)
        if chosen.state is None or any(self._is_needed(source) for source in missing):
            blame = [s for s in (STATE, *self._cameras) if s in missing and self._is_needed(s)]
            self._begin_gap(stamp_ns, f"{blame[0]} {missing[blame[0]]}")
            self._origin, self._not_before = None, stamp_ns + 1
            return
        self._end_gap(stamp_ns)
        state = chosen.state[1]
        action = self.commands.at(due_ns, state)
        if action is None:
            if self._part < 0:
                self.stats.before_first_command += 1
            else:
                self.stats.dropped["no command"] += 1
            self._open = False
            return
        task = self._text("task", stamp_ns)
        if not task:
            self.stats.without_task += 1
            self._open = False
            return
        if not self._open or task != self._task:
            self._part, self._open, self._task, self._last = self._part + 1, True, task, None
        self._count(chosen, missing)
        frame = Frame(
            stamp_ns=stamp_ns,
            images=images,
            state=state.astype(np.float32),
            action=action.astype(np.float32),
            subtask=self._text("subtask", due_ns),  # what the action is for, even in the frame in which it changes
        )
        self.stats.frames += 1
        yield PartFrame(self._part, task, frame)

    def _is_needed(self, source: str) -> bool:
        return source == STATE or self._config.rule(source).policy == "drop"

    def _begin_gap(self, stamp_ns: int, reason: str) -> None:
        self._gap = self._gap or (stamp_ns, reason)
        self._open = False

    def _end_gap(self, stamp_ns: int) -> None:
        if self._gap is None:
            return
        since_ns, reason = self._gap
        self._gap = None
        if stamp_ns - since_ns > LONGEST_GAP_S * NS:
            self.stats.clock_jumps += 1  # nobody records an hour of nothing
        elif self._part >= 0:
            self.stats.dropped[reason] += max(round((stamp_ns - since_ns) / self._period), 1)

    def _text(self, what: str, stamp_ns: int) -> str:
        texts = self._texts[what]
        while len(texts) > 1 and texts[1][0] <= stamp_ns:
            texts.pop(0)
        return texts[0][1] if texts and texts[0][0] <= stamp_ns else ""

    def _images(self, chosen: Selection) -> tuple[dict[str, bytes], dict[str, str]]:
        """Return JPEG bytes by camera, and why sources are missing."""
        images: dict[str, bytes] = {}
        missing = {source: reason.partition(" (")[0] for source, reason in chosen.missing.items()}
        for camera, (own_ns, picture) in chosen.images.items():
            known = self._encoded.get(camera)
            if known is None or known[0] != own_ns:
                try:
                    blob, changed = fitted_jpeg(picture.encoded, self.contract)
                except MessageError:
                    blob, changed = b"", False
                known = self._encoded[camera] = (own_ns, blob)
                self.stats.sources[camera].encoded_again += changed
            if known[1]:
                images[camera] = known[1]
            else:
                missing[camera] = "undecodable"
        return images, missing

    def _count(self, chosen: Selection, missing: Mapping[str, str]) -> None:
        assert chosen.state is not None
        own = {STATE: chosen.state[0], **{camera: entry[0] for camera, entry in chosen.images.items()}}
        before = self._last
        for source, stamp_ns in own.items():
            stats = self.stats.sources[source]
            stats.worst_age_s = max(stats.worst_age_s, abs(chosen.stamp_ns - stamp_ns) / NS)
            if before is not None:
                earlier = before.state if source == STATE else before.images.get(source)
                stats.held += earlier is not None and earlier[0] == stamp_ns
        for source, reason in missing.items():
            self.stats.sources[source].missing[reason] += 1
        self.stats.worst_skew_s = max(self.stats.worst_skew_s, (max(own.values()) - min(own.values())) / NS)
        self._last = chosen


def fitted_jpeg(encoded: Any, contract: Contract) -> tuple[bytes, bool]:
    """Return an image as JPEG bytes of the contract's size, and whether it had to be encoded for that.

    A JPEG of the right size goes through untouched; so it decodes to the very pixels that the live nodes see.

    Raises:
        MessageError: no image.
    """
    data = bytes(encoded)
    size = (contract.image.width, contract.image.height)
    if jpeg_size(data) == size and data.endswith(b"\xff\xd9"):
        return data, False
    image = decode_jpeg(data)
    if is_jpeg(data) and (image.shape[1], image.shape[0]) == size:
        return data, False
    return encode_jpeg(fit(image, *size), contract.image.jpeg_quality), True


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) [px] from a JPEG's frame header (ISO/IEC 10918-1, B.2.2); None when there is none."""
    at = 2 if is_jpeg(data) else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + length
    return None
