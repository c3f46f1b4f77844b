"""PaliGemma's text tokenizer, from its SentencePiece model or its tokenizer.json.

openpi reads the SentencePiece file (paligemma_tokenizer.model), lerobot the tokenizer.json of the hub; both give the
same ids. The vocabulary is Gemma's 256000 pieces, then <loc0000> ... <loc1023>, then <seg000> ... <seg127>.

Action token i has id vocab - 1 - 128 - i (openpi's FASTTokenizer), counted down from below the segmentation pieces.
So the first 1024 action tokens share their ids with the locations: <loc1023> is action token 0. Which of the two an id
means follows from where it stands; an answer holds actions or boxes, never both.

Control tokens ("<eos>") inside a text are read as characters, as the SentencePiece model reads them.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from pi05_model.tokenizer import (
    BOS_ID,
    EOS_ID,
    LOC_COUNT,
    PAD_ID,
    UNK_ID,
    check_action_ids,
    check_action_tokens,
    check_loc,
    tokenizer_from_json,
    well_formed,
)
from pi05_model.tokenizer import Tokenizer as TokenizerProtocol

TYPE = "paligemma"
SKIPPED = 128
"""Pieces at the end of the vocabulary that action tokens leave alone (openpi: fast_skip_tokens)."""

FAST_COUNT = 2048
MODEL_NAMES = ("tokenizer.model", "paligemma_tokenizer.model")
JSON_NAME = "tokenizer.json"
_CONTROL = {"<pad>": PAD_ID, "<eos>": EOS_ID, "<bos>": BOS_ID}
_LOC = re.compile(r"<(loc\d{4}|seg\d{3})>")


class Backend(Protocol):
    """A vocabulary from one of the two file formats."""

    @property
    def size(self) -> int:
        """Pieces, without those that were added to a tokenizer.json later."""

    def id(self, piece: str) -> int | None:
        """Return the id of a piece, or None."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return ids by text."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""

    def content(self) -> dict[str, Any]:
        """Return JSON values that rebuild it."""


class SentencePieceBackend:
    """The .model file."""

    def __init__(self, proto: bytes) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise ValueError("a SentencePiece model needs `pip install sentencepiece`") from error
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model: {error}") from error
        self._proto = proto

    @property
    def size(self) -> int:
        return int(self._processor.get_piece_size())

    def id(self, piece: str) -> int | None:
        found = int(self._processor.piece_to_id(piece))
        return found if self._processor.id_to_piece(found) == piece else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(texts)
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self._processor.decode(ids))

    def content(self) -> dict[str, Any]:
        return {"sentencepiece": base64.b64encode(self._proto).decode("ascii")}


class JsonBackend:
    """The tokenizer.json file."""

    def __init__(self, text: str) -> None:
        self._json = _with_plain_locations(text)
        try:
            self._backend = tokenizers.Tokenizer.from_str(self._json)
        except Exception as error:  # tokenizers raises no narrower class
            raise ValueError(f"not a tokenizer.json: {error}") from error
        # Otherwise "<eos>" in a task would end the sequence.
        self._backend.encode_special_tokens = True
        self._backend.no_padding()
        self._backend.no_truncation()

    @property
    def size(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=False))

    def id(self, piece: str) -> int | None:
        found: int | None = self._backend.token_to_id(piece)
        return found

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def content(self) -> dict[str, Any]:
        return {"tokenizer": json.loads(self._json)}


class PaliGemmaTokenizer:
    """PaliGemma's vocabulary behind `pi05_model.tokenizer.Tokenizer`.

    Raises:
        ValueError: the vocabulary is not PaliGemma's: control tokens have other ids, or locations are missing.
    """

    name = TYPE

    def __init__(self, backend: Backend) -> None:
        ids = {piece: backend.id(piece) for piece in _CONTROL}
        if ids != _CONTROL:
            raise ValueError(f"not PaliGemma's vocabulary: control tokens are {ids}, expected {_CONTROL}")
        self._locations = [backend.id(f"<loc{i:04d}>") for i in range(LOC_COUNT)]
        if None in self._locations:
            missing = f"<loc{self._locations.index(None):04d}>"
            raise ValueError(
                f"not PaliGemma's vocabulary: it lacks {missing}; a plain Gemma tokenizer has no locations"
            )
        if backend.size <= SKIPPED + LOC_COUNT:
            raise ValueError(f"not PaliGemma's vocabulary: {backend.size} pieces")
        self._backend = backend
        self._first_action = backend.size - 1 - SKIPPED

    @classmethod
    def from_json(cls, text: str) -> "PaliGemmaTokenizer":
        """Rebuild from `to_json`, or from a bare tokenizer.json.

        Raises:
            ValueError: it is neither.
        """
        content = json.loads(text)
        if content.get("type") != TYPE:
            return cls(JsonBackend(text))
        try:
            if "sentencepiece" in content:
                return cls(SentencePieceBackend(base64.b64decode(content["sentencepiece"], validate=True)))
            return cls(JsonBackend(json.dumps(content["tokenizer"])))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not what PaliGemmaTokenizer.to_json writes: {error!r}") from error

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Rows that the network's embedding needs: 257152. <image>, which the hub's file adds, is never encoded."""
        return self._backend.size

    @property
    def action_count(self) -> int:
        """Action tokens that have an id: the 2048 of FAST, fewer in a vocabulary that is too small for them."""
        return min(FAST_COUNT, self._first_action - UNK_ID)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids by text, without begin or end of sequence."""
        return self._backend.encode([well_formed(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, skipping control tokens; the ids of action tokens read as the pieces they were."""
        return self._backend.decode([int(i) for i in ids if UNK_ID < i < self.vocab_size])

    def action_ids(self, tokens: Sequence[int]) -> list[int]:
        """Return the ids of action tokens, downwards from vocab - 129."""
        check_action_tokens(tokens, self.action_count)
        return [self._first_action - int(token) for token in tokens]

    def action_tokens(self, ids: Sequence[int]) -> list[int]:
        """Invert `action_ids`."""
        tokens = [self._first_action - int(i) for i in ids]
        check_action_ids(ids, tokens, self.action_count, self._first_action - self.action_count + 1, self._first_action)
        return tokens

    def loc_id(self, index: int) -> int:
        """Return the id of <locNNNN>."""
        found = self._locations[check_loc(index)]
        assert found is not None
        return found

    def to_json(self) -> str:
        """Return the whole vocabulary as JSON, so that a checkpoint folder needs nothing else."""
        return json.dumps({"type": TYPE, **self._backend.content()}, ensure_ascii=False)


def load(source: Path | str) -> TokenizerProtocol:
    """Return the tokenizer of a file, a folder or a hub id; see `pi05_model.tokenizer.load_tokenizer`."""
    path = _find(source)
    try:
        if path.suffix == ".json":
            return tokenizer_from_json(path.read_text("utf-8"))
        return PaliGemmaTokenizer(SentencePieceBackend(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _find(source: Path | str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in (".json", ".model"):
            raise ValueError(f"{path}: a tokenizer is a .model or a .json file")
        return path
    names = (*MODEL_NAMES, JSON_NAME)
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"{path} holds none of {', '.join(names)}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(f"no tokenizer at {path}: give a .model or .json file, a folder of one, or a hub id")
    return _from_hub(str(source))


def _from_hub(repository: str) -> Path:
    """Return a file of a hub repository, from the local cache when it is there."""
    try:
        from transformers.utils import cached_file
    except ImportError as error:
        raise FileNotFoundError(
            f"{repository} is no local file or folder, and a hub id needs `pip install transformers`"
        ) from error
    reason: OSError | None = None
    for local in (True, False):
        for name in (MODEL_NAMES[0], JSON_NAME):
            try:
                if found := cached_file(repository, name, local_files_only=local):
                    return Path(found)
            except OSError as error:
                reason = error
                # A repository that merely lacks the file has no cause. No such repository, no permission and no
                # network have one, and the other name would fail alike, after many slow attempts.
                if not local and error.__cause__ is not None:
                    break
    raise FileNotFoundError(
        f"{repository} is no local file or folder, not in the hub's cache, and could not be downloaded "
        f"({str(reason).splitlines()[0]}). Offline, give the path of tokenizer.model or tokenizer.json; a gated "
        "repository wants its licence accepted and a login; without a source this project's own tokenizer is used"
    ) from reason


def _with_plain_locations(text: str) -> str:
    """Return a tokenizer.json whose locations are not special, so that they are read inside a text."""
    try:
        content = json.loads(text)
        for token in content.get("added_tokens", ()):
            token["special"] = token["special"] and not _LOC.fullmatch(token["content"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a tokenizer.json: {error}") from error
    return json.dumps(content, ensure_ascii=False)
