"""A model's files from the HuggingFace hub into its ordinary cache, which transformers shares. Used in the worker only.

huggingface_hub does the work: it locks, goes on with what a cut download left behind (`blobs/<etag>.incomplete`), and
tries again when a connection breaks. How far it has come is read from the size of that file.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

# Plain HTTP: hf_xet cannot resume a file. Its bars would fill the daemon's log.
os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ENABLE_HF_TRANSFER": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import requests
from huggingface_hub import (
    HfFileMetadata,
    configure_http_backend,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from protocol.errors import BadModel, LoadFailed, UnknownModel
from server.catalogue.architecture import PUBLISHED
from server.catalogue.files import (
    CONFIG_FILE,
    INDEX,
    TOKENIZER_FILES,
    TORCH_FILE,
    WEIGHTS_FILE,
    WEIGHTS_FILES,
    shards,
)
from server.catalogue.notes import SHA256, digest
from server.checkpoint.tensors import Report

constants.DOWNLOAD_CHUNK_SIZE = 1 << 20  # of its 10 MiB, up to all are lost with a connection, and progress would jump
CONTACT_S = 10.0
MAX_SMALL_BYTES = 32 << 20
"""Limit for config.json and the tokenizer's files; GPT-2's have up to 1.4 MB."""
LARGE = (".safetensors", ".bin")
ETAG = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
COMMIT = re.compile("[0-9a-f]{40}")
FULL = {errno.ENOSPC, errno.EDQUOT}
LOOK_S = 0.1
"""How often the growing file is looked at."""
T = TypeVar("T")


class Repository:
    """One model on the hub. Every method can raise LoadFailed, UnknownModel or BadModel, each saying what to do."""

    def __init__(self, name: str, cache: Path, models_dir: Path, progress: Report) -> None:
        self._name = name
        self._cache = cache
        self._models_dir = models_dir
        self._progress = progress
        self._blobs = cache / f"models--{name.replace('/', '--')}" / "blobs"

    def config(self) -> Path:
        """Fetch config.json; return the folder that will hold all files."""
        self._progress("connect", 0, 1, "hub")
        # One try of our own: the library's would take half a minute to find out that there is no network.
        self._call(lambda: get_session().head(hf_hub_url(self._name, CONFIG_FILE), timeout=CONTACT_S))
        found = self._metadata([CONFIG_FILE])
        if not found:
            raise BadModel(f"{constants.ENDPOINT}/{self._name} has no {CONFIG_FILE}, so it cannot be read")
        self._progress("connect", 1, 1, "hub")
        return self._fetch(found)

    def rest(self) -> Path:
        """Fetch the tokenizer and the weights, and check these; return the folder."""
        files = next((found for files in TOKENIZER_FILES if len(found := self._metadata(files)) == len(files)), None)
        weights = self._weights()
        if files is None or not weights:
            missing = (
                f"{WEIGHTS_FILE} or {TORCH_FILE}, whole or in shards (other formats are not read)"
                if not weights
                else "tokenizer.json or vocab.json with merges.txt"
            )
            raise BadModel(f"{constants.ENDPOINT}/{self._name} has no {missing}")
        self._check_disk(sum((sent.size or 0) - self._arrived(sent) for sent in weights.values()))
        folder = self._fetch(files | weights)
        for file, sent in weights.items():
            self._verify(folder / file, sent.etag or "")
        return folder

    def _weights(self) -> dict[str, HfFileMetadata]:
        """Return the files of the weights in the order in which a folder is read; of shards those of the index."""
        for name in WEIGHTS_FILES:
            found = self._metadata([name])
            if found and name.endswith(INDEX):
                named = shards(self._fetch(found) / name)
                found |= self._metadata(named)
                if missing := [shard for shard in named if shard not in found]:
                    raise BadModel(f"{constants.ENDPOINT}/{self._name} has no {missing[0]}, which its {name} names")
            if found:
                return found
        return {}

    def _arrived(self, found: HfFileMetadata) -> int:
        """Return how much of a file is on the disk."""
        return max(_size(self._blobs / str(found.etag)), _size(self._incomplete(found)))

    def _metadata(self, files: Iterable[str]) -> dict[str, HfFileMetadata]:
        """Sizes and digests of those of the files that the repository has."""
        found = {}
        for file in files:
            try:
                found[file] = self._call(partial(get_hf_file_metadata, hf_hub_url(self._name, file), timeout=CONTACT_S))
            except EntryNotFoundError:
                continue
            if not file.endswith(LARGE) and (found[file].size or 0) > MAX_SMALL_BYTES:
                raise BadModel(
                    f"{file} of {self._name} has {(found[file].size or 0) / 1e6:.0f} MB, "
                    "more than such a file ever needs"
                )
        return found

    def _fetch(self, files: dict[str, HfFileMetadata]) -> Path:
        """Download what is not there yet, reporting the bytes of all files together."""
        total, done = sum(found.size or 0 for found in files.values()), 0
        folders = set()
        with ThreadPoolExecutor(1) as pool:  # progress is reported by this thread, which owns the worker's socket
            for file, found in files.items():
                future = pool.submit(self._fetch_one, file, found)
                while not future.done():
                    self._progress("download", done + _size(self._incomplete(found)), total, "bytes")
                    wait([future], LOOK_S)
                path = Path(self._call(future.result))
                done += found.size or 0
                folders.add(path.parent)
        self._progress("download", total, total, "bytes")
        if len(folders) != 1:
            raise LoadFailed(f"{self._name} changed on the hub while it was downloaded; load it again")
        return folders.pop()

    def _fetch_one(self, file: str, found: HfFileMetadata) -> str:
        """Download a file; after a broken connection it goes on, as long as each one brings something."""
        while True:
            had = _size(self._incomplete(found))
            if had > (found.size or 0):  # of a hub that sent more than it had said
                self._incomplete(found).unlink(missing_ok=True)
            try:
                return hf_hub_download(self._name, file, cache_dir=self._cache, etag_timeout=CONTACT_S)
            except requests.exceptions.ChunkedEncodingError:
                if _size(self._incomplete(found)) <= had:
                    raise

    def _incomplete(self, found: HfFileMetadata) -> Path:
        return self._blobs / f"{found.etag}.incomplete"

    def _verify(self, file: Path, etag: str) -> None:
        """Check the SHA-256, by which the hub names large files; the library checks the size alone."""
        if (
            SHA256.fullmatch(etag)
            and digest(file, lambda done, total: self._progress("verify", done, total, "bytes")) != etag
        ):
            for path in (file.resolve(), file):
                path.unlink(missing_ok=True)
            raise LoadFailed(
                f"{file.name} of {self._name} came damaged (its SHA-256 is not the hub's) and was deleted; "
                "load again to download it once more"
            )

    def _check_disk(self, needed: int) -> None:
        free = shutil.disk_usage(self._cache).free
        if needed > free:
            raise LoadFailed(
                f"the download of {self._name} needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free in "
                f"{self._cache}; make room there, or set HF_HUB_CACHE to a folder on a larger disk"
            )

    def _call(self, call: Callable[[], T]) -> T:
        """Call the library; its errors become ours, except EntryNotFoundError. Raises: OSError for the disk's own."""
        try:
            return call()
        except requests.exceptions.ChunkedEncodingError as e:
            raise LoadFailed(
                f"the download of {self._name} was cut; load again, and it goes on where it stopped"
            ) from e
        except (LocalEntryNotFoundError, requests.ConnectionError, requests.Timeout, OfflineModeIsEnabled) as e:
            known = PUBLISHED.get(self._name)
            size = f" (about {known.published_bytes / 1e6:.0f} MB)" if known else ""
            why = (
                "HF_HUB_OFFLINE is set"
                if isinstance(e, OfflineModeIsEnabled)
                else f"{constants.ENDPOINT} cannot be reached"
            )
            raise LoadFailed(
                f"{self._name} is not on this server's disk, and {why}. {CONFIG_FILE}, {WEIGHTS_FILE} and "
                f"tokenizer.json{size} would be downloaded from {constants.ENDPOINT}/{self._name}; without the hub, "
                f"put a folder with these files at {self._models_dir / self._name.rpartition('/')[2]}"
            ) from e
        except EntryNotFoundError:
            raise
        except RepositoryNotFoundError as e:  # of which a gated one is a kind
            raise UnknownModel(
                f"{constants.ENDPOINT} has no model {self._name}, or only for those who log in (HF_TOKEN)"
            ) from e
        except HFValidationError as e:
            raise UnknownModel(f"{self._name} is not the name of a repository: {e}") from e
        except requests.RequestException as e:
            raise LoadFailed(f"the hub does not give {self._name}: {e}") from e
        except OSError as e:
            if e.errno in FULL:
                raise LoadFailed(
                    f"the disk of {self._cache} is full: make room there, or set HF_HUB_CACHE to a folder on a larger "
                    f"one; when {self._name} is loaded again, its download goes on where it stopped"
                ) from e
            if e.errno is not None:  # the disk's, not the library's word for a file that ended too soon
                raise
            raise LoadFailed(
                f"the download of {self._name} was cut; load again, and it goes on where it stopped"
            ) from e


class HubSession(requests.Session):
    """The library's HTTP session: every answer is checked, since the library makes names of files of what it says."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Raises: OfflineModeIsEnabled, LoadFailed, and what requests raises."""
        if constants.HF_HUB_OFFLINE:  # the library's own session does the same
            raise OfflineModeIsEnabled(f"{request.url} is not asked: HF_HUB_OFFLINE is set")
        answer = super().send(request, **kwargs)
        check_names(answer)
        return answer


def check_names(answer: requests.Response) -> None:
    """The library makes folders of the commit and files of the etag: these must be digests. Raises: LoadFailed."""
    commit = answer.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
    if commit is not None and not COMMIT.fullmatch(commit):
        raise LoadFailed(f"the hub {constants.ENDPOINT} gives a commit that is not a digest; is it a HuggingFace hub?")
    elsewhere = answer.is_redirect and not urlsplit(answer.headers["Location"]).netloc  # the library asks there
    if answer.request.method != "HEAD" or answer.status_code >= 400 or elsewhere:
        return
    etag = answer.headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) or answer.headers.get("ETag", "")
    if not ETAG.fullmatch(etag.lstrip("W/").strip('"')):
        raise LoadFailed(
            f"the hub {constants.ENDPOINT} gives a file an etag that is not a digest; is it a HuggingFace hub?"
        )


configure_http_backend(HubSession)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
