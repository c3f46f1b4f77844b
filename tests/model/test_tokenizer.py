"""The vocabulary, and what it makes of any text."""

from importlib import resources
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_model.tokenizer import (
    ACTION_COUNT,
    ACTION_START,
    LOC_START,
    PolicyTokenizer,
    build,
    load_tokenizer,
    tokenizer_from_json,
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


def test_action_tokens_stand_in_order_behind_the_text() -> None:
    tokens = list(range(ACTION_COUNT))
    ids = TOKENIZER.action_ids(tokens)
    assert ids == list(range(3072, 5120)) and TOKENIZER.vocab_size == 5120
    assert TOKENIZER.action_tokens(ids) == tokens
    # A sequence that a network says is read, not shown.
    assert TOKENIZER.decode([*ids[:3], *TOKENIZER.encode(["|"])[0]]) == "|"
    with pytest.raises(ValueError, match=r"\[2048\] are outside 0 \.\.\. 2047"):
        TOKENIZER.action_ids([0, 2048])
    with pytest.raises(ValueError, match=r"2 ids are no action tokens \(3071 at 1, 5120 at 2\); those are 3072"):
        TOKENIZER.action_tokens([3072, 3071, 5120])


def test_location_ids() -> None:
    texts = ["<loc0000>", "<loc0512>", "<loc1023>"]
    assert [[TOKENIZER.loc_id(i)] for i in (0, 512, 1023)] == TOKENIZER.encode(texts)
    for index in (-1, 1024):
        with pytest.raises(ValueError, match=r"0 \.\.\. 1023"):
            TOKENIZER.loc_id(index)


def test_a_lone_surrogate_is_readable() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(["a\ud800b\U0001f600"])[0]) == "a\ufffdb\U0001f600"


def test_without_a_source_the_shipped_one_is_loaded() -> None:
    assert load_tokenizer().fingerprint == load_tokenizer(None).fingerprint == TOKENIZER.fingerprint


def test_its_file_loads_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_json(), "utf-8")
    for again in (load_tokenizer(tmp_path), load_tokenizer(str(tmp_path / "tokenizer.json"))):
        assert type(again) is PolicyTokenizer and again.fingerprint == TOKENIZER.fingerprint


def test_the_embedded_checkpoint_still_loads() -> None:
    path = Path(__file__).parents[2] / "checkpoints" / "pi05_tiny" / "tokenizer.json"
    again = tokenizer_from_json(path.read_text("utf-8"))
    assert type(again) is PolicyTokenizer and again.vocab_size == 5120
    assert again.decode(again.encode(["pick up the red cube"])[0]) == "pick up the red cube"


def test_another_vocabulary_is_not_taken_for_it() -> None:
    other = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(ValueError, match="<loc0000> has id None instead of 260"):
        tokenizer_from_json(other.to_str())


def test_too_many_words_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        PolicyTokenizer.from_words(f"word{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}{i}" for i in range(5000))
