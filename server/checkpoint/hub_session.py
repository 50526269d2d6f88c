"""How huggingface_hub speaks HTTP: with requests before its version 1, with httpx or httpx2 since.

Every answer is checked, since the library makes names of files and folders of what a hub says. Used in the worker only.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any
from urllib.parse import urlsplit

# Plain HTTP: hf_xet cannot resume a file. Bars would fill the daemon's log.
os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
os.environ.pop("HF_HUB_ENABLE_HF_TRANSFER", None)  # cannot resume either; newer versions warn of it

import huggingface_hub
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError

from protocol.errors import BadModel, LoadFailed

CONTACT_S = 10.0
MAX_SMALL_BYTES = 32 << 20
"""Limit for the configuration and the tokenizer's files; GPT-2's have up to 1.4 MB."""
LARGE = (".safetensors", ".bin")
ETAG = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
COMMIT = re.compile("[0-9a-f]{40}")

HTTP: Any = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]
"""The library that this version speaks HTTP with: its own error descends from that one's."""
WITH_REQUESTS = HTTP.__name__ == "requests"
RESUMES = tuple(int(part) for part in huggingface_hub.__version__.split(".")[:2]) < (1, 18)
"""Whether this version goes on with what a cut download left behind."""
CUT: tuple[type[Exception], ...]
"""Errors of a connection that broke in the middle of an answer."""
UNREACHABLE: tuple[type[Exception], ...]
FAILED: tuple[type[Exception], ...]
"""Any error of an exchange, those above among them."""
if WITH_REQUESTS:
    CUT = (HTTP.exceptions.ChunkedEncodingError,)
    UNREACHABLE = (HTTP.ConnectionError, HTTP.Timeout)
    FAILED = (HTTP.RequestException,)
else:
    CUT = (HTTP.ReadError, HTTP.RemoteProtocolError)
    UNREACHABLE = (HTTP.TransportError,)
    FAILED = (HTTP.HTTPError,)


def check(answer: Any, *_: object, **__: object) -> None:
    """Check what the library makes names of, and how large a small file is. Raises: LoadFailed, BadModel.

    The commit becomes a folder's name and the etag a file's: these must be digests.
    """
    commit = answer.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
    if commit is not None and not COMMIT.fullmatch(commit):
        raise LoadFailed(f"the hub {constants.ENDPOINT} gives a commit that is not a digest; is it a HuggingFace hub?")
    if answer.request.method != "HEAD" or answer.status_code >= 400 or _is_followed(answer):
        return
    etag = answer.headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) or answer.headers.get("ETag", "")
    if not ETAG.fullmatch(etag.lstrip("W/").strip('"')):
        raise LoadFailed(
            f"the hub {constants.ENDPOINT} gives a file an etag that is not a digest; is it a HuggingFace hub?"
        )
    size = answer.headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_SIZE) or answer.headers.get("Content-Length", "")
    file = urlsplit(str(answer.request.url)).path
    if not file.endswith(LARGE) and size.isdecimal() and int(size) > MAX_SMALL_BYTES:
        raise BadModel(f"{constants.ENDPOINT}{file} has {int(size) / 1e6:.0f} MB, more than such a file ever needs")


def _is_followed(answer: Any) -> bool:
    """Return whether the library asks elsewhere on this hub, as for a renamed repository."""
    address = answer.headers.get("Location") if 300 <= answer.status_code < 400 else None
    if address is None:
        return False
    host = urlsplit(address).netloc
    return not host or (not WITH_REQUESTS and host == urlsplit(str(answer.request.url)).netloc)


def _session() -> Any:
    if WITH_REQUESTS:
        session = HTTP.Session()
        session.hooks["response"].append(check)
        return session
    return HTTP.Client(event_hooks={"response": [check]}, follow_redirects=True, timeout=CONTACT_S)


def leave() -> None:
    """Close this thread's connections to the hub. With requests each thread's would stay open as long as the worker."""
    if WITH_REQUESTS:
        get_session().close()


getattr(huggingface_hub, "configure_http_backend" if WITH_REQUESTS else "set_client_factory")(_session)
