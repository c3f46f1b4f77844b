"""The vocabulary, and what it makes of any text."""

from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_model.tokenizer import (
    ACTION_START,
    EOS_ID,
    LOC_START,
    PolicyTokenizer,
    TokenTrie,
    build,
)

TOKENIZER = PolicyTokenizer.default()


def test_the_shipped_file_is_what_the_word_list_gives(tmp_path: Path) -> None:
    assets = resources.files("pi05_model").joinpath("assets")
    words = tmp_path / "words.txt"
    words.write_text(assets.joinpath("words.txt").read_text("utf-8"), "utf-8")
    build(words, tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_text("utf-8") == assets.joinpath("tokenizer.json").read_text("utf-8")


def test_every_bin_is_one_token_with_and_without_a_space() -> None:
    bins = [str(i) for i in range(256)]
    ids = TOKENIZER.encode(bins) + TOKENIZER.encode([" " + text for text in bins])
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == 512


def test_known_words_are_single_tokens() -> None:
    [ids] = TOKENIZER.encode(["pick up the red cube with the left arm"])
    assert len(ids) == 9


def test_locations_have_their_own_ids() -> None:
    assert TOKENIZER.encode(["<loc0000><loc1023>"]) == [[LOC_START, LOC_START + 1023]]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80).filter(lambda text: "▁" not in text))
def test_any_text_survives(text: str) -> None:
    [ids] = TOKENIZER.encode([text])
    assert TOKENIZER.decode(ids) == text
    # Text never turns into control or action tokens.
    assert all(3 < i < ACTION_START for i in ids)


@pytest.mark.parametrize("text", ["<eos>", "<pad>", "<bos>", "<0x41>"])
def test_control_tokens_in_a_task_are_letters(text: str) -> None:
    [ids] = TOKENIZER.encode([text])
    assert len(ids) > 1
    assert TOKENIZER.decode(ids) == text


def test_json_round_trip() -> None:
    again = PolicyTokenizer.from_json(TOKENIZER.to_json())
    assert again.fingerprint == TOKENIZER.fingerprint


def test_too_many_words_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        PolicyTokenizer.from_words(f"word{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}{i}" for i in range(5000))


def test_trie_walks_the_sequences() -> None:
    trie = TokenTrie([[5, 6], [5, 7], [5]])
    assert trie.options([]) == [5]
    assert sorted(trie.options([5])) == sorted([6, 7, EOS_ID])
    assert trie.options([5, 6]) == [EOS_ID]
    assert trie.options([9]) == []


def test_trie_knows_when_nothing_is_left_to_choose() -> None:
    trie = TokenTrie([[5, 6, 7, 8], [5, 9], [4]])
    assert trie.completion([]) is None and trie.completion([5]) is None
    assert trie.completion([5, 6]) == [7, 8]
    assert trie.completion([4]) == []
    assert trie.completion([3]) is None
