"""Text to token ids.

`Tokenizer` is the protocol that the rest of the package uses; PaliGemma's SentencePiece model can stand behind it as
well as `PolicyTokenizer`, a small vocabulary for robot instructions. Its ids:

    0 <pad>  1 <eos>  2 <bos>  3 <unk>
    4 ... 259         bytes, so that any UTF-8 text has tokens
    260 ... 1283      <loc0000> ... <loc1023>, image coordinates
    1284 ... 3071     numbers 0 ... 255, words (with and without the space before them), characters
    3072 ... 5119     left to action tokens

Special text inside a task ("<eos>") is read as characters, never as control tokens.
"""

import hashlib
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
    """What prompts and answers need of a tokenizer. Ids 0, 1, 2 are padding, end and begin of sequence."""

    @property
    def vocab_size(self) -> int:
        """Rows that the network's embedding needs."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids by text, without begin or end of sequence."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, skipping control tokens."""

    def to_json(self) -> str:
        """Return what `from_json` of the same class rebuilds it from."""


class PolicyTokenizer:
    """The project's own tokenizer: a unigram model whose longest known pieces win, with byte fallback."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    @classmethod
    def default(cls) -> "PolicyTokenizer":
        """Load the vocabulary that ships with the package."""
        return cls.from_json(resources.files("pi05_model").joinpath("assets/tokenizer.json").read_text("utf-8"))

    @classmethod
    def from_json(cls, text: str) -> "PolicyTokenizer":
        """Rebuild from `to_json`."""
        return cls(tokenizers.Tokenizer.from_str(text))

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
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, skipping control and action tokens."""
        text: str = self._backend.decode([i for i in ids if UNK_ID < i < ACTION_START])
        return text

    def to_json(self) -> str:
        """Return the vocabulary as JSON."""
        text: str = self._backend.to_str()
        return text

    @property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class TokenTrie:
    """A set of token sequences, walked one token at a time during decoding."""

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._next: dict[tuple[int, ...], list[int]] = {}
        for sequence in sequences:
            complete = (*sequence, EOS_ID)
            for i, token in enumerate(complete):
                options = self._next.setdefault(complete[:i], [])
                if token not in options:
                    options.append(token)

    def options(self, answer: Sequence[int]) -> list[int]:
        """Return the tokens that may follow `answer`; none when it is no beginning of any sequence."""
        return list(self._next.get(tuple(answer), []))

    def completion(self, answer: Sequence[int]) -> list[int] | None:
        """Return the rest of the only sequence that begins with `answer`, or None while there is a choice."""
        rest: list[int] = []
        while len(options := self.options([*answer, *rest])) == 1:
            if options == [EOS_ID]:
                return rest
            rest += options
        return None


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
