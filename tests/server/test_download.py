"""What the hub says is checked before the library makes names of files of it."""

from __future__ import annotations

import pytest
import requests
from huggingface_hub import get_session

from protocol.errors import LoadFailed
from server.checkpoint.download import HubSession, check_names

COMMIT = "5" * 40
SHA256 = "a" * 64


def answer(method: str, status: int, **headers: str) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    made.request = requests.Request(method, "http://hub/gpt2/resolve/main/config.json").prepare()
    made.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return made


def test_the_library_asks_through_the_session_that_checks() -> None:
    assert isinstance(get_session(), HubSession)


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
def test_what_a_hub_says(said: requests.Response) -> None:
    check_names(said)


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
def test_what_becomes_no_name_of_a_file(said: requests.Response, what: str) -> None:
    with pytest.raises(LoadFailed, match=f"gives .* {what} that is not a digest; is it a HuggingFace hub"):
        check_names(said)
