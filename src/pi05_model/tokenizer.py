"""Text to token ids.

`Tokenizer` is the protocol that the rest of the package uses. Two classes stand behind it: `PaliGemmaTokenizer`
(pi05_model.paligemma), when its files are there, and `PolicyTokenizer`, a small vocabulary for robot instructions that
ships with the package. `load_tokenizer` chooses. Ids of `PolicyTokenizer`:

    0 <pad>  1 <eos>  2 <bos>  3 <unk>
    4 ... 259         bytes, so that any UTF-8 text has tokens
    260 ... 1283      <loc0000> ... <loc1023>, image coordinates
    1284 ... 3071     numbers 0 ... 255, words (with and without the space before them), characters
    3072 ... 5119     left to action tokens

Special text inside a task ("<eos>") is read as characters, never as control tokens. A surrogate that stands alone,
which no UTF-8 holds, is read as U+FFFD.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import decoders, models, normalizers

PAD_ID, EOS_ID, BOS_ID, UNK_ID = 0, 1, 2, 3
LOC_START, LOC_COUNT = 260, 1024
WORD_START, ACTION_START = 1284, 3072
ACTION_COUNT = 2048
SPACE = "▁"

# A segmentation with the highest sum wins; control pieces score so low that their letters always win against them.
_WORD_SCORE, _CHARACTER_SCORE, _CONTROL_SCORE = -1.0, -10.0, -1000.0


class Tokenizer(Protocol):
    """What prompts and answers need of a tokenizer. Ids 0, 1, 2 are padding, end and begin of sequence.

    Action tokens are counted from 0 by their own tokenizer (FAST, FSQ, VQ); each has an id of this vocabulary.
    """

    @property
    def name(self) -> str:
        """Short name for reports and errors."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary and how it is applied: equal means equal ids for every text."""

    @property
    def vocab_size(self) -> int:
        """Rows that the network's embedding needs."""

    @property
    def action_count(self) -> int:
        """Action tokens that have an id."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids by text, without begin or end of sequence."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, skipping control tokens."""

    def action_ids(self, tokens: Sequence[int]) -> list[int]:
        """Return the ids of action tokens 0 ... action_count - 1.

        Raises:
            ValueError: a token is out of range; the message names it.
        """

    def action_tokens(self, ids: Sequence[int]) -> list[int]:
        """Invert `action_ids`.

        Raises:
            ValueError: some ids are no action tokens; the message names them.
        """

    def loc_id(self, index: int) -> int:
        """Return the id of <locNNNN>, 0 ... 1023.

        Raises:
            ValueError: the index is out of range.
        """

    def to_json(self) -> str:
        """Return what `tokenizer_from_json` rebuilds it from, whichever class it is."""


class PolicyTokenizer:
    """The project's own tokenizer: a unigram model whose longest known pieces win, with byte fallback."""

    name = "pi05"
    action_count = ACTION_COUNT

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    @classmethod
    def default(cls) -> "PolicyTokenizer":
        """Load the vocabulary that ships with the package."""
        return cls.from_json(resources.files("pi05_model").joinpath("assets/tokenizer.json").read_text("utf-8"))

    @classmethod
    def from_json(cls, text: str) -> "PolicyTokenizer":
        """Rebuild from `to_json`.

        Raises:
            ValueError: `text` is no such vocabulary.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises no narrower class
            raise ValueError(f"not a tokenizer.json: {error}") from error
        if backend.token_to_id("<loc0000>") != LOC_START or backend.get_vocab_size() > ACTION_START:
            raise ValueError(
                f"not this project's vocabulary: <loc0000> has id {backend.token_to_id('<loc0000>')} instead of "
                f"{LOC_START}, {backend.get_vocab_size()} pieces of at most {ACTION_START}"
            )
        return cls(backend)

    @classmethod
    def from_words(cls, words: Iterable[str]) -> "PolicyTokenizer":
        """Build from a word list; the same list in any order gives the same ids.

        Raises:
            ValueError: the list does not fit into the ids kept for words.
        """
        pieces = _pieces(words)
        if len(pieces) > ACTION_START:
            raise ValueError(f"{len(pieces) - ACTION_START} pieces too many: shorten the word list")
        backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=UNK_ID, byte_fallback=True))
        backend.normalizer = normalizers.Replace(" ", SPACE)
        backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Rows that the network's embedding needs, action tokens included."""
        return ACTION_START + ACTION_COUNT

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids by text, without begin or end of sequence."""
        encodings = self._backend.encode_batch([well_formed(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, skipping control and action tokens."""
        text: str = self._backend.decode([i for i in ids if UNK_ID < i < ACTION_START])
        return text

    def action_ids(self, tokens: Sequence[int]) -> list[int]:
        """Return the ids of action tokens: they stand in order behind the text."""
        check_action_tokens(tokens, self.action_count)
        return [ACTION_START + int(token) for token in tokens]

    def action_tokens(self, ids: Sequence[int]) -> list[int]:
        """Invert `action_ids`."""
        tokens = [int(i) - ACTION_START for i in ids]
        check_action_ids(ids, tokens, self.action_count, ACTION_START, ACTION_START + ACTION_COUNT - 1)
        return tokens

    def loc_id(self, index: int) -> int:
        """Return the id of <locNNNN>."""
        return LOC_START + check_loc(index)

    def to_json(self) -> str:
        """Return the vocabulary as JSON."""
        text: str = self._backend.to_str()
        return text

    @property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def load_tokenizer(source: Path | str | None = None) -> Tokenizer:
    """Return the tokenizer of `source`.

    Args:
        source: None for the one that ships with the package; else PaliGemma's: a .model file (SentencePiece), a
            tokenizer.json, a folder that holds one of them, or a hub id. A hub id is looked up in the local cache
            first. A tokenizer.json that `to_json` wrote, also that of a checkpoint folder, loads as its own class.

    Raises:
        FileNotFoundError: there is no such file, or no such hub id that can be reached; the message says what to do.
        ValueError: the file holds something else.
    """
    from pi05_model import paligemma  # it builds on this module

    return PolicyTokenizer.default() if source is None else paligemma.load(source)


def tokenizer_from_json(text: str) -> Tokenizer:
    """Rebuild the tokenizer that wrote `text`, whichever class it is; a bare tokenizer.json is recognised.

    Raises:
        ValueError: it is neither this project's vocabulary nor PaliGemma's.
    """
    from pi05_model import paligemma

    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not a tokenizer.json: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"not a tokenizer.json: a JSON {type(content).__name__}, expected an object")
    # PolicyTokenizer is the one unigram model; PaliGemma's is BPE, or wrapped with the name of its class.
    model = content.get("model")
    if isinstance(model, dict) and model.get("type") == "Unigram":
        return PolicyTokenizer.from_json(text)
    return paligemma.PaliGemmaTokenizer.from_json(text)


def well_formed(text: str) -> str:
    """Return `text` with lone surrogates as U+FFFD, which every tokenizer can read."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_action_tokens(tokens: Sequence[int], count: int) -> None:
    """Refuse action tokens outside 0 ... count - 1."""
    wrong = [int(token) for token in tokens if not 0 <= token < count]
    if wrong:
        raise ValueError(f"action tokens {wrong[:8]} are outside 0 ... {count - 1}: the action tokenizer is too large")


def check_action_ids(ids: Sequence[int], tokens: Sequence[int], count: int, low: int, high: int) -> None:
    """Refuse ids whose action tokens are outside 0 ... count - 1; `low` and `high` are the valid ids."""
    wrong = [
        (place, int(i)) for place, (i, token) in enumerate(zip(ids, tokens, strict=True)) if not 0 <= token < count
    ]
    if wrong:
        named = ", ".join(f"{i} at {place}" for place, i in wrong[:8])
        raise ValueError(f"{len(wrong)} ids are no action tokens ({named}); those are {low} ... {high}")


def check_loc(index: int) -> int:
    """Return `index`, refusing what is outside 0 ... 1023."""
    if not 0 <= index < LOC_COUNT:
        raise ValueError(f"<loc{index:04d}> does not exist: locations are 0 ... {LOC_COUNT - 1}")
    return index


def build(words_file: Path, out: Path) -> PolicyTokenizer:
    """Write the tokenizer of a word list (one word a line, # for comments) to `out`; deterministic."""
    lines = words_file.read_text("utf-8").splitlines()
    tokenizer = PolicyTokenizer.from_words(word for line in lines for word in line.partition("#")[0].split())
    out.write_text(tokenizer.to_json(), "utf-8")
    return tokenizer


def _pieces(words: Iterable[str]) -> list[tuple[str, float]]:
    """Return (piece, score) in the order of their ids."""
    special = [(name, _CONTROL_SCORE) for name in ("<pad>", "<eos>", "<bos>", "<unk>")]
    byte = [(f"<0x{i:02X}>", _CONTROL_SCORE) for i in range(256)]
    loc = [(f"<loc{i:04d}>", _WORD_SCORE) for i in range(LOC_COUNT)]
    numbers = [str(i) for i in range(256)]
    known = dict.fromkeys([*numbers, *sorted(set(words) - set(numbers))])
    text = {piece: _WORD_SCORE for word in known for piece in (SPACE + word, word)}
    characters = [chr(i) for i in range(33, 127)] + ["\n", SPACE]
    for character in characters:
        text.setdefault(character, _CHARACTER_SCORE)
    assert len(special) + len(byte) == LOC_START
    return [*special, *byte, *loc, *text.items()]
