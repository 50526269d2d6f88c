"""What comes of a repository of the hub, in which order, and what the user is told where it does not come.

Against a small hub on 127.0.0.1 and the real library. Every line runs with both generations of huggingface_hub:

    python -m venv /tmp/two
    /tmp/two/bin/pip install ".[server]" pytest pytest-timeout hypothesis ml_dtypes "huggingface_hub>=2"
    /tmp/two/bin/python -m pytest tests/server/test_download.py tests/system/test_hub.py
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocol.errors import BadModel, LoadFailed, UnknownModel
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER, never_looked_for
from server.catalogue.files import ADAPTER_CONFIG, OTHER_FILES
from server.checkpoint.download import Repository
from server.checkpoint.hub_session import RESUMES, check
from server.checkpoint.tokenizer import read_tokenizer
from tests.conftest import wait_for
from tests.hub import COMMIT, Hub

# After the above, which sets variables that the library reads.
from huggingface_hub import constants, file_download  # isort: skip
from huggingface_hub.utils import WeakFileLock  # isort: skip

SHA256 = "a" * 64
WEIGHTS = DEMO_FOLDER / "model.safetensors"
Make = Callable[[str], Repository]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        for module in (constants, file_download):  # one generation has it here, the other there
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda name: Repository(name, tmp_path / "hub", tmp_path / "models", lambda *_: None)


def config(hub: Hub, name: str, **other: bytes) -> None:
    """Give the hub a repository with the embedded model's config.json and other files."""
    hub.add(name, DEMO_FOLDER, "config.json")
    hub.files |= {f"{name}/{file}": body for file, body in other.items()}


def test_each_file_is_asked_for_once_and_the_weights_last(hub: Hub, make: Make) -> None:
    hub.add("some/verse", DEMO_FOLDER)
    repository = make("some/verse")
    folder = repository.config()
    assert read_architecture(folder) == read_architecture(DEMO_FOLDER)
    repository.tokenizer()
    assert not hub.weights_asked()
    repository.weights()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS.read_bytes()
    there = {name for name in OTHER_FILES if f"some/verse/{name}" in hub.files}
    asked = sorted((file.removeprefix("some/verse/"), method) for method, file, _ in hub.asked)
    small = [("config.json", method) for method in ("GET", "HEAD", "HEAD")]  # of which one tries the connection
    small += [(name, "HEAD") for name in (ADAPTER_CONFIG, *OTHER_FILES)] + [(name, "GET") for name in there]
    assert asked == sorted(small + [("model.safetensors", method) for method in ("GET", "HEAD", "HEAD")])
    assert never_looked_for(folder) == []
    gc.collect()  # the errors of files that the hub has not held theirs
    wait_for(lambda: hub.connections() <= 2)  # no thread keeps its own


KINDS = {
    "bpe": ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"),
    "wordpiece": ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
    "unigram": ("tokenizer.json", "spiece.model", "generation_config.json"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_files_of_a_tokenizer_come(hub: Hub, make: Make, kind: str) -> None:
    """Where one is left behind, a model silently gets other tokens than it was trained with."""
    config(hub, "some/kind", **{name: name.encode() for name in (*KINDS[kind], "README.md", "training_args.bin")})
    repository = make("some/kind")
    folder = repository.config()
    repository.tokenizer()
    assert {file.name for file in folder.iterdir()} == {"config.json", *KINDS[kind]}
    assert all((folder / name).read_text() == name for name in KINDS[kind])


def test_added_tokens_beside_a_vocabulary_are_the_tokens_of_a_text(hub: Hub, make: Make) -> None:
    bpe = json.loads((DEMO_FOLDER / "tokenizer.json").read_text())["model"]
    last = max(bpe["vocab"], key=bpe["vocab"].get)
    merges = [" ".join(pair) for pair in bpe["merges"] if "".join(pair) != last]
    token = bpe["vocab"].pop(last)
    config(
        hub,
        "some/chat",
        **{
            "vocab.json": json.dumps(bpe["vocab"]).encode(),
            "merges.txt": "\n".join(["#version: 0.2", *merges]).encode(),
            "added_tokens.json": json.dumps({"<|user|>": token}).encode(),
        },
    )
    repository = make("some/chat")
    folder = repository.config()
    repository.tokenizer()
    assert read_tokenizer(folder).tokenizer.encode("<|user|>", add_special_tokens=False).ids == [token]


def test_a_mirror_that_only_serves_files(hub: Hub, make: Make) -> None:
    hub.plain = True
    hub.add("some/verse", DEMO_FOLDER)
    repository = make("some/verse")
    folder = repository.config()
    repository.tokenizer()
    repository.weights()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS.read_bytes()


def test_a_download_that_is_cut_says_what_the_next_one_does(
    hub: Hub, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.add("some/verse", DEMO_FOLDER)
    hub.cut_after = 0
    repository = make("some/verse")
    repository.config()
    what = (
        "goes on where it stopped" if RESUMES else r"begins again: huggingface_hub [\d.]+ keeps nothing of a download"
    )
    with pytest.raises(LoadFailed, match=f"the download of some/verse was cut; load again, and it {what}"):
        repository.weights()


def test_without_a_tokenizer_nothing_large_is_asked_for(hub: Hub, make: Make) -> None:
    config(hub, "some/merges", **{"merges.txt": b"", "model.safetensors": b"", "pytorch_model.bin": b""})
    repository = make("some/merges")
    repository.config()
    with pytest.raises(BadModel, match=r"/some/merges: tokenizer\.json \(or .*\) is missing"):
        repository.tokenizer()
    assert not hub.weights_asked()


def test_without_a_configuration(hub: Hub, make: Make) -> None:
    hub.add("some/tokens", DEMO_FOLDER, "tokenizer.json")
    with pytest.raises(BadModel, match=r"/some/tokens has no config\.json"):
        make("some/tokens").config()


def test_a_renamed_repository(hub: Hub, make: Make) -> None:
    hub.renamed = {"old/verse": "new/verse"}
    hub.add("new/verse", DEMO_FOLDER)
    repository = make("old/verse")
    folder = repository.config()
    repository.tokenizer()
    repository.weights()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS.read_bytes()


def test_what_has_come_is_told_also_when_the_file_has_its_last_name(hub: Hub, tmp_path: Path) -> None:
    hub.add("some/verse", DEMO_FOLDER)
    told: list[int] = []
    repository = Repository("some/verse", tmp_path / "hub", tmp_path / "models", lambda *said: told.append(said[1]))
    repository.config()
    repository.weights()
    (sent,) = repository._weights().values()
    repository._look(sent, 5, 100)
    assert told[-1] == 5 + WEIGHTS.stat().st_size


def test_a_commit_in_between_is_refused(hub: Hub, make: Make) -> None:
    hub.add("some/verse", DEMO_FOLDER)
    repository = make("some/verse")
    repository.config()
    hub.commit = "6" * 40
    with pytest.raises(LoadFailed, match="changed on the hub while it was downloaded; load it again"):
        repository.tokenizer()


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", r"/some/gate is gated: accept its terms on that page, .* HF_TOKEN .* or run hf auth login as"),
        ("hf_other", r"/some/gate is gated, and the account of this server's token may not read it: accept"),
        ("hf_strange", r"does not accept this server's token, which is wrong or has expired: make another"),
        ("hf_t\u00f6ken\u2603", "this server's token has characters that no token has"),
    ],
)
def test_a_gated_repository_says_what_to_do(
    hub: Hub, make: Make, monkeypatch: pytest.MonkeyPatch, token: str, said: str
) -> None:
    hub.add("some/gate", DEMO_FOLDER)
    hub.gated = frozenset(["some/gate"])
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(LoadFailed, match=said) as told:
        make("some/gate").config()
    assert not token or token not in str(told.value), "a token is told to nobody"
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert make("some/gate").config()


@pytest.mark.usefixtures("hub")
def test_a_repository_that_is_not_there_or_private(make: Make) -> None:
    with pytest.raises(UnknownModel, match=r"has no model some/thing, or only for those who log in \(HF_TOKEN\)"):
        make("some/thing").config()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["some/ver--se", "some/.verse", "some/verse.git"])
def test_a_name_that_no_repository_has(make: Make, name: str) -> None:
    with pytest.raises(UnknownModel, match=f"{name} is not the name of a repository"):
        make(name).config()


def test_what_an_earlier_snapshot_lacks_comes_once(hub: Hub, make: Make, tmp_path: Path) -> None:
    """Of the commit that the snapshot has, though the repository has another by now."""
    snapshot = tmp_path / "hub" / "models--some--verse" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("")
    config(hub, "some/verse", **{"tokenizer_config.json": b"{}", "tokenizer.json": b"", "model.safetensors": b""})
    unknown = never_looked_for(snapshot)
    assert unknown == [name for name in OTHER_FILES if name != "tokenizer.json"]
    make("some/verse").complete(unknown, COMMIT)
    assert sorted(file.name for file in snapshot.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert never_looked_for(snapshot) == [] and not hub.weights_asked()
    assert never_looked_for(DEMO_FOLDER) == [], "a folder that is not the cache's is taken as it is"


@pytest.mark.parametrize("plain", [False, True])
def test_a_commit_that_the_hub_does_not_give_is_no_commit_without_these_files(
    hub: Hub, make: Make, plain: bool
) -> None:
    hub.plain = plain
    config(hub, "some/verse", **{"tokenizer_config.json": b"{}"})
    with pytest.raises(LoadFailed, match=r"/some/verse does not give commit 6666"):
        make("some/verse").complete(["tokenizer_config.json"], "6" * 40)


def test_parts_that_no_download_can_go_on_with_do_not_stay(hub: Hub, make: Make, tmp_path: Path) -> None:
    """Versions of the library from 1.18 on leave one behind each time that their process is ended."""
    hub.add("some/verse", DEMO_FOLDER)
    blobs = tmp_path / "hub" / "models--some--verse" / "blobs"
    blobs.mkdir(parents=True)
    name = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    (blobs / f"{name}.0a1b2c3d.incomplete").write_bytes(b"part")
    (blobs / f"{name}.incomplete").write_bytes(bytes(WEIGHTS.stat().st_size + 1))
    repository = make("some/verse")
    repository.config()
    repository.weights()
    assert not list(blobs.glob("*.incomplete")) and (blobs / name).read_bytes() == WEIGHTS.read_bytes()


def test_a_part_that_somebody_else_writes_just_now_stays(hub: Hub, make: Make, tmp_path: Path) -> None:
    hub.add("some/verse", DEMO_FOLDER)
    blobs = tmp_path / "hub" / "models--some--verse" / "blobs"
    locks = tmp_path / "hub" / ".locks" / "models--some--verse"
    blobs.mkdir(parents=True)
    locks.mkdir(parents=True)
    name = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    part = blobs / f"{name}.0a1b2c3d.incomplete"
    part.write_bytes(b"part")
    repository = make("some/verse")
    repository.config()
    with WeakFileLock(locks / f"{name}.lock"):
        (sent,) = repository._weights().values()
        repository._clear(sent)
    assert part.exists()


def answer(method: str, status: int, **headers: str) -> SimpleNamespace:
    request = SimpleNamespace(method=method, url="http://hub/gpt2/resolve/main/config.json")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(request=request, status_code=status, headers=named)


@pytest.mark.parametrize(
    "said",
    [
        answer("HEAD", 200, ETag=f'"{COMMIT}"', X_Repo_Commit=COMMIT),
        answer("HEAD", 200, ETag=f'W/"{COMMIT}"'),
        answer("HEAD", 302, ETag='"of the redirect"', X_Linked_Etag=f'"{SHA256}"', Location="https://elsewhere/x"),
        answer("HEAD", 307, ETag='"of the page"', Location="/openai-community/gpt2/resolve/main/config.json"),
        answer("HEAD", 404, X_Repo_Commit=COMMIT),
        answer("GET", 200, ETag='"of the part"'),
    ],
)
def test_what_a_hub_says(said: SimpleNamespace) -> None:
    check(said)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (answer("HEAD", 200, ETag='"../../evil"', X_Repo_Commit=COMMIT), "etag"),
        (answer("HEAD", 200, X_Repo_Commit=COMMIT), "etag"),
        (answer("HEAD", 200, ETag=f'"{COMMIT}"', X_Linked_Etag="../evil"), "etag"),
        (answer("HEAD", 302, ETag="../evil", Location="https://elsewhere/x"), "etag"),
        (answer("HEAD", 200, ETag=f'"{COMMIT}"', X_Repo_Commit="../../evil"), "commit"),
        (answer("HEAD", 404, X_Repo_Commit="../../evil"), "commit"),  # the library notes what a commit has not
        (answer("GET", 200, X_Repo_Commit="../../evil"), "commit"),
    ],
)
def test_what_becomes_no_name_of_a_file(said: SimpleNamespace, what: str) -> None:
    with pytest.raises(LoadFailed, match=f"gives .* {what} that is not a digest; is it a HuggingFace hub"):
        check(said)


@pytest.mark.parametrize("said", ["etag", "commit"])
def test_the_library_asks_through_the_session_that_checks(hub: Hub, make: Make, tmp_path: Path, said: str) -> None:
    hub.add("some/verse", DEMO_FOLDER)
    setattr(hub, said, "../../../evil")
    with pytest.raises(LoadFailed, match=f"{said} that is not a digest"):
        make("some/verse").config()
    assert not list(tmp_path.rglob("evil*"))


def test_a_redirect_to_other_storage_tells_the_size_of_a_small_file() -> None:
    said = {"ETag": "x", "X_Linked_Etag": SHA256, "X_Linked_Size": str(33 << 20), "Location": "https://elsewhere/x"}
    with pytest.raises(BadModel, match=r"main/config.json has 35 MB, more than such a file ever needs"):
        check(answer("HEAD", 302, **said))
