"""PaliGemma's tokenizer, from small files of the published formats that are made here."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_model.paligemma import PaliGemmaTokenizer, SentencePieceBackend
from pi05_model.prompts import Box, box_text, expert_prompt, pi0_prompt
from pi05_model.tokenizer import BOS_ID, EOS_ID, LOC_COUNT, PolicyTokenizer, load_tokenizer, tokenizer_from_json

LOCATIONS = [f"<loc{i:04d}>" for i in range(LOC_COUNT)]
SEGMENTS = [f"<seg{i:03d}>" for i in range(128)]
SENTENCES = ["clear the table", "pick up the red cube", "Task: open it, State: 0 17 255;", "Subtask: Action: |"]


def train_model(symbols: list[str], **settings_: object) -> bytes:
    """Train a BPE model with Gemma's settings: byte fallback, no dummy prefix, text as it is."""
    proto = io.BytesIO()
    options: dict[str, object] = {
        "sentence_iterator": iter(SENTENCES * 20),
        "model_writer": proto,
        "model_type": "bpe",
        "vocab_size": 4000,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "pad_piece": "<pad>",
        "eos_piece": "<eos>",
        "bos_piece": "<bos>",
        "user_defined_symbols": symbols,
        "add_dummy_prefix": False,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(**{**options, **settings_})
    return proto.getvalue()


@pytest.fixture(scope="module")
def proto() -> bytes:
    return train_model(["\n", *LOCATIONS, *SEGMENTS])


@pytest.fixture(scope="module")
def model_file(proto: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(proto)
    return path


@pytest.fixture(scope="module")
def hub_folder(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers writes for the same model: a tokenizer.json, with the hub's extra <image>."""
    source = model_file.parent
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer"}))
    converted = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    converted.add_special_tokens({"additional_special_tokens": ["<image>"]})
    folder = tmp_path_factory.mktemp("hub")
    converted.save_pretrained(folder)
    assert (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").exists()
    return folder


@pytest.fixture(scope="module", params=["model", "json"])
def tokenizer(request: pytest.FixtureRequest, model_file: Path, hub_folder: Path) -> PaliGemmaTokenizer:
    loaded = load_tokenizer(model_file if request.param == "model" else hub_folder)
    assert isinstance(loaded, PaliGemmaTokenizer)
    return loaded


def test_prompts_have_the_ids_of_sentencepiece(tokenizer: PaliGemmaTokenizer, proto: bytes) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    text = expert_prompt("pick up the red cube", [0, 17, 255])
    assert [[BOS_ID, *ids] for ids in tokenizer.encode([text])] == [processor.encode(text, add_bos=True)]
    # openpi encodes π0's newline on its own; after a cleaned task that is the same.
    assert tokenizer.encode([pi0_prompt("clear\nthe_table")]) == [
        processor.encode("clear the table") + processor.encode("\n")
    ]
    assert tokenizer.vocab_size == processor.get_piece_size()


def test_both_files_give_the_ids_of_transformers(model_file: Path, hub_folder: Path) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(hub_folder, local_files_only=True)
    texts = ["Task: pick up it, State: 1 2;\nAction: ", "<loc0007><loc1023> red", "ünïcode 桌子 \t  two  blanks "]
    expected = [reference.encode(text, add_special_tokens=False) for text in texts]
    assert load_tokenizer(model_file).encode(texts) == expected
    assert load_tokenizer(hub_folder / "tokenizer.json").encode(texts) == expected


def test_action_tokens_count_down_from_below_the_last_128(tokenizer: PaliGemmaTokenizer) -> None:
    vocab = tokenizer.vocab_size
    assert tokenizer.action_ids([0, 1, 5]) == [vocab - 129, vocab - 130, vocab - 134]
    tokens = list(range(tokenizer.action_count))
    ids = tokenizer.action_ids(tokens)
    assert tokenizer.action_tokens(ids) == tokens and len(set(ids)) == len(ids)
    with pytest.raises(ValueError, match=rf"\[-1, {tokenizer.action_count}\]"):
        tokenizer.action_ids([0, -1, tokenizer.action_count])
    with pytest.raises(ValueError, match=f"{vocab - 128} at 1"):
        tokenizer.action_tokens([ids[0], vocab - 128, ids[1]])


def test_a_full_vocabulary_holds_the_2048_of_fast() -> None:
    filler = [f"<piece{i:04d}>" for i in range(1200)]
    tokenizer = PaliGemmaTokenizer(SentencePieceBackend(train_model(["\n", *filler, *LOCATIONS, *SEGMENTS])))
    assert tokenizer.action_count == 2048
    assert tokenizer.action_tokens(tokenizer.action_ids([2047])) == [2047]


def test_locations_are_looked_up(tokenizer: PaliGemmaTokenizer, proto: bytes) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    assert [tokenizer.loc_id(i) for i in (0, 512, 1023)] == [
        processor.piece_to_id(LOCATIONS[i]) for i in (0, 512, 1023)
    ]
    [ids] = tokenizer.encode([box_text(Box(0, 0.25, 0.5, 1, "red cube"))])
    assert ids[:4] == [tokenizer.loc_id(i) for i in (0, 256, 512, 1023)]
    assert tokenizer.decode(ids) == "<loc0000><loc0256><loc0512><loc1023> red cube"
    with pytest.raises(ValueError, match="1024"):
        tokenizer.loc_id(1024)


@pytest.mark.parametrize("text", ["<eos>", "<bos>", "<pad>", "<image>"])
def test_control_tokens_in_a_task_are_letters(tokenizer: PaliGemmaTokenizer, text: str) -> None:
    [ids] = tokenizer.encode([f"a {text} b"])
    assert not {0, EOS_ID, BOS_ID} & set(ids) and max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == f"a {text} b"


def test_control_ids_are_not_shown(tokenizer: PaliGemmaTokenizer) -> None:
    [ids] = tokenizer.encode(["red cube"])
    assert tokenizer.decode([BOS_ID, *ids, EOS_ID, 0, 0]) == "red cube"


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives(tokenizer: PaliGemmaTokenizer, text: str) -> None:
    [ids] = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text


def test_a_lone_surrogate_is_readable(tokenizer: PaliGemmaTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(["a\ud800b"])[0]) == "a\ufffdb"


def test_json_keeps_class_content_and_fingerprint(tokenizer: PaliGemmaTokenizer, tmp_path: Path) -> None:
    again = tokenizer_from_json(tokenizer.to_json())
    assert type(again) is PaliGemmaTokenizer
    assert again.fingerprint == tokenizer.fingerprint != PolicyTokenizer.default().fingerprint
    # A checkpoint folder keeps it under the name of the own tokenizer's file.
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    for loaded in (again, load_tokenizer(tmp_path)):
        assert loaded.encode(SENTENCES) == tokenizer.encode(SENTENCES)
        assert (loaded.name, loaded.vocab_size) == ("paligemma", tokenizer.vocab_size)


def test_what_is_not_paligemma_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_model(["\n"]))
    with pytest.raises(ValueError, match=r"tokenizer\.model.*lacks <loc0000>"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(train_model([*LOCATIONS, *SEGMENTS], bos_id=1, eos_id=2))
    with pytest.raises(ValueError, match=r"'<eos>': 2, '<bos>': 1"):
        load_tokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"type": "paligemma"}', '{"added_tokens": 3}', '{"model": {"type": "Unigram"}}']
)
def test_a_broken_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_missing_file_says_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\.model or \.json"):
        load_tokenizer(tmp_path / "nothing.model")
    (tmp_path / "words.txt").write_text("a")
    with pytest.raises(ValueError, match=r"\.model or a \.json"):
        load_tokenizer(tmp_path / "words.txt")


def test_locations_that_a_file_calls_special_are_still_read(hub_folder: Path, tmp_path: Path) -> None:
    content = json.loads((hub_folder / "tokenizer.json").read_text("utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    present = {token["content"] for token in content["added_tokens"]}
    content["added_tokens"] = [{**token, "special": True} for token in content["added_tokens"]] + [
        {"id": content["model"]["vocab"][piece], "content": piece, **plain}
        for piece in LOCATIONS
        if piece not in present
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(["<loc0007> <eos>"])[0][0] == loaded.loc_id(7)
    assert loaded.encode(["<loc0007> <eos>"]) == load_tokenizer(hub_folder).encode(["<loc0007> <eos>"])


LOAD = """
import sys
from pi05_model.tokenizer import load_tokenizer
try:
    print(load_tokenizer(sys.argv[1]).fingerprint)
except FileNotFoundError as error:
    print(error)
"""


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str]]]:
    """A hub that has nothing: its address, and the paths it was asked for."""
    asked: list[str] = []

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/some/" in self.path else "RepoNotFound")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def load_in_a_process(source: str, **environment: str) -> str:
    """Return what LOAD prints; the hub's settings are read from the environment at import."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", LOAD, source]
    return subprocess.run(
        command, env={**inherited, **environment}, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_hub_id_is_looked_up_in_the_cache_first(
    proto: bytes, tmp_path: Path, requests: tuple[str, list[str]]
) -> None:
    endpoint, asked = requests
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.model").write_bytes(proto)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0" * 40)
    cache = str(tmp_path)
    expected = PaliGemmaTokenizer(SentencePieceBackend(proto)).fingerprint
    assert load_in_a_process("some/model", HF_HUB_CACHE=cache, HF_ENDPOINT=endpoint) == expected
    # The library asks for other things of its own.
    assert not [path for path in asked if "some/model" in path]

    said = load_in_a_process("other/model", HF_HUB_CACHE=cache, HF_ENDPOINT=endpoint)
    assert said.startswith("other/model is no local file or folder") and "Offline, give the path" in said
    wanted = [path for path in asked if "/other/model/" in path]
    assert wanted and not any("tokenizer.json" in path for path in wanted)
    # A repository without a SentencePiece file is asked for its tokenizer.json.
    asked.clear()
    load_in_a_process("some/empty", HF_HUB_CACHE=cache, HF_ENDPOINT=endpoint)
    assert any("tokenizer.model" in path for path in asked) and any("tokenizer.json" in path for path in asked)
