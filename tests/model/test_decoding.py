"""What a decoder may say."""

from pi05_model.decoding import TokenTrie, forced
from pi05_model.tokenizer import EOS_ID


def test_a_trie_walks_its_sequences() -> None:
    trie = TokenTrie([[5, 6], [5, 7], [5]])
    assert list(trie.options(trie.start)) == [5]
    five = trie.advance(trie.start, 5)
    assert sorted(trie.options(five)) == sorted([6, 7, EOS_ID])
    assert list(trie.options(trie.advance(five, 6))) == [EOS_ID]
    assert list(trie.options(trie.advance(trie.start, 9))) == []


def test_nothing_is_left_to_choose() -> None:
    trie = TokenTrie([[5, 6, 7, 8], [5, 9], [4]])
    assert forced(trie, trie.start) is None and forced(trie, (5,)) is None
    assert forced(trie, (5, 6)) == [7, 8]
    assert forced(trie, (4,)) == []
    assert forced(trie, (3,)) is None
