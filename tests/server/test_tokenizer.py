"""Tokenizers as people have them: the same tokens as transformers 5 makes, or a sentence that says why not."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from protocol import messages as m
from protocol.errors import BadModel
from protocol.many import parts
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.spiece import check_charsmap, read_pieces
from server.checkpoint.tokenizer import read_tokenizer
from server.worker.passages import Passages
from server.worker.text import Text
from tests.server import tokenizer_kinds as kinds
from tests.server.tokenizer_kinds import END, FAST, GPT2, KINDS, SPM, TEXTS, byte_level, config, spiece, write

JUDGED = Path(__file__).resolve().parent.parent / "data" / "tokenizers.json"
"""What transformers 5.24.0 makes of the kinds: tokenizer_kinds.py says how it is made."""
EXPECTED: dict[str, Any] = {name: made for line in json.loads(JUDGED.read_text("utf-8")) for name, made in line.items()}


def test_every_kind_was_judged() -> None:
    assert list(EXPECTED) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path)
    made, expected = read_tokenizer(tmp_path), EXPECTED[kind]
    assert list(made.before) == expected["before"]
    for text, ids, told in zip(TEXTS, expected["ids"], expected["text"], strict=True):
        assert made.tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert made.tokenizer.decode([i for i in ids if i not in made.special], skip_special_tokens=False) == told, text
    ids = made.tokenizer.encode("a , b .", add_special_tokens=False).ids
    told = made.tokenizer.decode(ids, skip_special_tokens=False)
    assert (told.replace(" ,", ",").replace(" .", ".") if made.clean_up else told) == expected["cleaned"]


def text_of(folder: Path) -> Text:
    """Return the tokenizer of a folder, with a model that has all its tokens."""
    made = read_tokenizer(folder)
    return Text(made, replace(read_architecture(folder), vocabulary=made.tokenizer.get_vocab_size()))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith("of words")])  # which are not cut
def test_a_text_in_parts_has_the_tokens_of_the_whole(tmp_path: Path, kind: str) -> None:
    """Parts begin with a space, a line break or a letter: none gets a space that the text does not have."""
    KINDS[kind](tmp_path)
    whole = "One, two\nthree (four) five\n\nsix seven 日本、日本、東京、東京、日本、日本"
    cut = [whole[begin:end] for begin, end in parts(whole, 16)]
    assert {" ", "\n", "東"} < {part[0] for part in cut}
    made = text_of(tmp_path)
    passages = [m.Passage(text=part, context=whole[: sum(map(len, cut[:i]))]) for i, part in enumerate(cut)]
    pieces = list(Passages(made, m.Score(texts=passages)))
    assert [piece.spans.text for piece in pieces] == cut
    assert [i for piece in pieces for i in piece.spans.ids] == made.spans(m.Tokenize(text=whole)).ids
    assert all(piece.spans.offsets[-1] == len(piece.spans.text.encode()) for piece in pieces if piece.spans.ids)


def test_nothing_of_transformers_is_loaded(tmp_path: Path) -> None:
    """In a fresh process; sentencepiece is loaded where its model is read, and only there."""
    for kind in ("json", "rinna"):
        (tmp_path / kind).mkdir()
        KINDS[kind](tmp_path / kind)
    code = """if True:
        import sys
        from pathlib import Path
        from server.checkpoint.tokenizer import read_tokenizer
        read_tokenizer(Path(sys.argv[1]) / "json")
        assert "sentencepiece" not in sys.modules
        assert read_tokenizer(Path(sys.argv[1]) / "rinna").tokenizer.encode("hello").ids
        assert not {"torch", "transformers", "google.protobuf"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_a_byte_level_tokenizer_is_told_from_others(tmp_path: Path) -> None:
    expected = {
        "json": True,
        "bos": True,
        "rinna": False,
        "uer": False,
        "Metaspace BPE": False,
        "chess of words": False,
    }
    for kind, is_bytes in expected.items():
        (tmp_path / kind).mkdir()
        KINDS[kind](tmp_path / kind)
        assert read_tokenizer(tmp_path / kind).byte_level == is_bytes


def test_an_end_of_text_that_the_model_does_not_have_is_text(tmp_path: Path) -> None:
    """transformers would give it a number that the model has no row for."""
    kinds.chess(tmp_path)
    made = read_tokenizer(tmp_path)
    assert made.tokenizer.get_vocab_size() == 8 and not made.special
    assert made.tokenizer.decode(made.tokenizer.encode(f"e4{END}").ids) == "e4efe"
    assert made.notices == (f"the model has no token {END}: in a prompt it is text like any other",)


def test_what_transformers_4_did_otherwise_is_said(tmp_path: Path) -> None:
    said = {
        "rinna": "a character that the vocabulary lacks becomes </s>, as in transformers 5, and not its own <unk>",
        "lower case": "tokenizer.json's normalizer is not used: as in transformers 5, GPT2Tokenizer has its own "
        "(tokenizer_class PreTrainedTokenizerFast would use it)",
        "json with prefix space, PreTrained": "add_prefix_space is True, as in tokenizer.json and transformers 5",
        "uer, json, EOT": "the added token '[EOT]' is written as in its file (transformers 5 writes it normalized)",
        "uer, json": "what stands before each text is BertTokenizer's, as in transformers 5",
    }
    for kind, sentence in said.items():
        (tmp_path / kind).mkdir()
        KINDS[kind.removesuffix(", EOT")](tmp_path / kind)
        if kind.endswith("EOT"):
            write(tmp_path / kind, "added_tokens.json", {"[EOT]": 90})
        assert sentence in read_tokenizer(tmp_path / kind).notices


def test_the_library_cuts_nothing_off(tmp_path: Path) -> None:
    KINDS["padding"](tmp_path)
    made = read_tokenizer(tmp_path).tokenizer
    assert len(made.encode("a b c d e f g h").ids) > 4 and len(made.encode_batch(["a", "a b c d"])[0].ids) == 1


def changed(part: str, **settings: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        content = kinds.demo()
        (content[part] if part else content).update(settings)
        byte_level(folder, whole=True, json=content, tokenizer_config=FAST)

    return make


def options(**given: object) -> Callable[[Path], None]:
    return lambda folder: byte_level(folder, whole=False, tokenizer_config=given)


def only(*names: str) -> Callable[[Path], None]:
    """A folder where only these files of a tokenizer are left."""

    def make(folder: Path) -> None:
        byte_level(folder, whole=False, tokenizer_config=GPT2)
        spiece(folder, first=SPM)
        kinds.wordpiece(folder, whole=False)
        write(folder, "tokenizer_config.json", {})
        for file in folder.iterdir():
            if file.name not in {*names, "config.json", "tokenizer_config.json"}:
                file.unlink()

    return make


def beside(folder: Path) -> None:
    KINDS["rinna"](folder)
    shutil.copy(folder / "spiece.model", folder / "tokenizer.model")


def prepended(folder: Path) -> None:
    changes = {"normalizer": {"type": "Prepend", "prepend": "▁"}}
    byte_level(folder, whole=True, json=changes, tokenizer_config=FAST, added_tokens={"<user>": 4096})


def without_cls(folder: Path) -> None:
    kinds.wordpiece(folder, whole=False, tokenizer_class="BertTokenizer", cls_token=None)


def miditok(folder: Path) -> None:
    byte_level(folder, whole=False)
    write(folder, "tokenizer.json", {"tokenization": "REMI", "config": {}})


def unigram_as_gpt2(folder: Path) -> None:
    KINDS["Unigram"](folder)
    (folder / "tokenizer_config.json").unlink()


def words_as_gpt2(folder: Path) -> None:
    KINDS["chess of words"](folder)
    write(folder, "tokenizer_config.json", GPT2)


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: config(folder, 8), "tokenizer.json .or vocab.json with merges.txt, or .* is missing"),
    (only("vocab.txt"), r"vocab.json is missing; set tokenizer_class in .* \(here BertTokenizer\)"),
    (only("spiece.model"), r"vocab.json is missing; .* \(here T5Tokenizer or AlbertTokenizer\)"),
    (only("vocab.json", "spiece.model"), "GPT2Tokenizer reads vocab.json and merges.txt, and merges.txt is missing"),
    (options(**FAST), "PreTrainedTokenizerFast reads tokenizer.json, which is missing; .* .here GPT2Tokenizer"),
    (options(tokenizer_class="GPTSw3Tokenizer"), "tokenizer_class GPTSw3Tokenizer is not read; these are: PreTr"),
    (options(tokenizer_class="BertJapaneseTokenizer"), "tokenizer_class BertJapaneseTokenizer is not read"),
    (options(tokenizer_class="CpmTokenizer"), "tokenizer_class CpmTokenizer is not read"),
    (options(tokenizer_class="MIDITokenizer"), "set tokenizer_class to PreTrainedTokenizerFast in tokenizer_config"),
    (options(tokenizer_class=5), "tokenizer_class must be a text"),
    (options(auto_map={"AutoTokenizer": ["own.Own", None]}), "a program of its own .auto_map in tokenizer_config.json"),
    (options(auto_map=["own.Own", None]), "code of a model is not run"),
    (options(split_special_tokens=True), "tokenizer_config.json has split_special_tokens, which is not read"),
    (options(fast_tokenizer_files=["tokenizer.4.0.0.json"]), "has fast_tokenizer_files, which is not read"),
    (options(trust_remote_code=True), "has trust_remote_code, which is not read"),
    (options(tokenizer_object=1), "has tokenizer_object, which is not read"),
    (options(bos_token={"content": "<s>"}), "has a special token that is not understood"),
    (
        options(added_tokens_decoder={"1": {"content": "x", "colour": 1}}),
        "the added token .x. has .colour., which is not known",
    ),
    (options(add_prefix_space="yes"), "the tokenizer cannot be read"),
    (unigram_as_gpt2, r"holds a tokenizer \(Unigram\) that GPT2Tokenizer would read as another one: set tokenizer_cl"),
    (words_as_gpt2, r"holds a tokenizer \(WordLevel\) that GPT2Tokenizer would read as another one"),
    (prepended, "has the added token .<user>. that is found in what comes out"),
    (options(tokenizer_class="BertTokenizer"), "BertTokenizer reads vocab.txt, and vocab.txt is missing"),
    (without_cls, "puts a cls_token around a text, and tokenizer_config.json sets none"),
    (beside, "transformers reads tokenizer.model before spiece.model"),
    (changed("", tokens="new"), "tokenizer.json has the setting tokens, which is not known"),
    (changed("model", fuse_all=True), "has the setting model.fuse_all, which is not known"),
    (changed("pre_tokenizer", twice=True), "has the setting pre_tokenizer.twice, which is not known"),
    (changed("", pre_tokenizer={"type": "Astral"}), "the tokenizer cannot be read"),
    (changed("model", dropout=0.1), "has a dropout, by which a text gets other tokens each time"),
    (miditok, "tokenizer.json is not of the library `tokenizers` .miditok"),
    (changed("", post_processor=kinds.template("x", 0) | {"single": []}), "does not have the text once"),
    (lambda folder: kinds.wordpiece(folder, whole=False, words=["a"], tokenizer_class="BertTokenizer"), "has no .UNK"),
    (lambda folder: spiece(folder, first=SPM, tokenizer_class="T5Tokenizer", extra_ids=10**9), "extra_ids 1000000000"),
    (
        lambda folder: spiece(folder, first=SPM, name="tokenizer.model", tokenizer_class="LlamaTokenizer"),
        "tokenizer.model is not a model of BPE",
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, number: int) -> None:
    make, says = REFUSED[number]
    make(tmp_path)
    with pytest.raises(BadModel, match=says):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", "[" * 100_000, '{"a": "\\ud800"}', "\xff\xfe", '{"model": {}}']
)
def test_hostile_json_is_refused(tmp_path: Path, name: str, content: str) -> None:
    byte_level(tmp_path, whole=False)
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    if content.startswith("{") and content.endswith("}") and name != "tokenizer.json":
        read_tokenizer(tmp_path)
        return
    with pytest.raises(BadModel, match=rf"^(the tokenizer cannot be read|{name} )"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"])
def test_files_are_bounded(tmp_path: Path, name: str) -> None:
    byte_level(tmp_path, whole=False)
    with (tmp_path / name).open("ab") as file:
        file.truncate((32 << 20) + 1)
    with pytest.raises(BadModel, match=rf"{name} (has 335\d* bytes, more|is over 33554432 bytes)"):
        read_tokenizer(tmp_path)


HUGE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@HUGE
@given(st.binary(max_size=60), st.integers(0, 10_000), st.integers(0, 3))
def test_a_damaged_sentencepiece_model_is_refused(tmp_path: Path, damage: bytes, at: int, how: int) -> None:
    """Or read, where the damage only changed a piece; never anything else."""
    file = tmp_path / "spiece.model"
    spiece(tmp_path, first=SPM, tokenizer_class="T5Tokenizer", table=False)
    whole = file.read_bytes()
    at %= len(whole)
    file.write_bytes([damage, whole[:at], whole[:at] + damage + whole[at:], whole[:at] + damage + whole[at + 9 :]][how])
    with contextlib.suppress(BadModel):
        read_tokenizer(tmp_path).tokenizer.encode("hello world <user> 你好")


def test_a_table_of_characters_that_leads_out_of_itself_is_refused(tmp_path: Path) -> None:
    """The library would end with a panic when it meets such a character."""
    table = kinds.charsmap()
    check_charsmap(table)
    size = int.from_bytes(table[:4], "little")
    out = (0x1FFFFF << 10).to_bytes(4, "little")
    bad = [b"", table[:3], table[: size // 2], table[:4] + out + table[8:], b"\xff" * 100, table + b"x"]
    bad.append((4).to_bytes(4, "little") + (1 << 31 | 9).to_bytes(4, "little") + b"abc\0")
    for damaged in bad:
        with pytest.raises(BadModel, match="precompiled_charsmap"):
            check_charsmap(damaged)
    KINDS["Unigram"](tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    content["normalizer"]["normalizers"][0]["precompiled_charsmap"] = base64.b64encode(bad[3]).decode()
    write(tmp_path, "tokenizer.json", content)
    with pytest.raises(BadModel, match="precompiled_charsmap"):
        read_tokenizer(tmp_path)


def test_without_the_package_sentencepiece_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KINDS["rinna"](tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(BadModel, match=r"spiece.model is read by the package sentencepiece, which is missing here"):
        read_tokenizer(tmp_path)


def test_nothing_of_the_folder_is_imported_or_written(tmp_path: Path) -> None:
    KINDS["rinna"](tmp_path)
    for name in ("sentencepiece.py", "sentencepiece_model_pb2.py", "tokenizers.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    before = sorted(file.name for file in tmp_path.iterdir())
    code = "import sys; from pathlib import Path; from server.checkpoint.tokenizer import read_tokenizer; "
    code += "here = list(sys.path); read_tokenizer(Path('.')); assert sys.path == here"
    env = {"PYTHONPATH": str(DEMO_FOLDER.parent.parent), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=60)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_the_pieces_are_those_of_the_package(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    KINDS["rinna"](tmp_path)
    own = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    found = read_pieces(tmp_path / "spiece.model")
    assert found.pieces == [(own.id_to_piece(i), own.get_score(i)) for i in range(own.get_piece_size())]
    assert [i for i, kind in enumerate(found.kinds) if kind == 3] == [
        i for i in range(len(found.kinds)) if own.is_control(i)
    ]
    assert found.unknown == own.unk_id() and found.charsmap == kinds.charsmap()


def test_a_chat_template_is_handed_on_as_it_is(tmp_path: Path) -> None:
    """That of a file of its own comes before those of the options, of which the default is meant."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO_FOLDER, folder)
    assert read_tokenizer(folder).chat_template == ""
    several = [{"name": "tools", "template": "{{ 1 }}"}, {"name": "default", "template": "{{ 2 }}"}]
    for told, found in (("{{ 0 }}", "{{ 0 }}"), (several, "{{ 2 }}"), (several[:1], "")):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": told}))
        assert read_tokenizer(folder).chat_template == found
    (folder / "chat_template.jinja").write_text("{{ 3 }}\n")
    assert read_tokenizer(folder).chat_template == "{{ 3 }}\n"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadModel, match=r"chat_template.jinja is not UTF-8 text"):
        read_tokenizer(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "\ud83d"}))
    with pytest.raises(BadModel, match=r"chat_template with halves of characters"):
        read_tokenizer(folder)


def test_special_tokens_have_the_names_that_a_template_asks_for(tmp_path: Path) -> None:
    """The eos_token is the tokenizer's, whatever else ends a text; those that a class has are among them."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO_FOLDER, folder)
    told = {"eos_token": "<|im_end|>", "pad_token": {"__type": "AddedToken", "content": "<|pad|>"}, "bos_token": None}
    own = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    for options, names in (
        ({}, dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)),
        (told, own | {"unk_token": END}),
        (told | FAST, own),
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps(options))
        assert read_tokenizer(folder).names == names
