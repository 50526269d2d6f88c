"""A model's files from the HuggingFace hub into its ordinary cache, which transformers shares. Used in the worker only.

huggingface_hub does the work: it locks, goes on with what a cut download left behind (`blobs/<etag>.incomplete`; from
version 1.18 on it does not), and tries again when a connection breaks. How far it has come is read from the size of
that file. The small files come first, so that a model that is refused costs no download.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

# Before the library, which reads variables that it sets.
from server.checkpoint.hub_session import CONTACT_S, CUT, FAILED, RESUMES, UNREACHABLE, leave  # isort: skip

import huggingface_hub
from huggingface_hub import (
    HfFileMetadata,
    constants,
    get_hf_file_metadata,
    get_session,
    get_token,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status

from protocol.errors import BadModel, LoadFailed, UnknownModel
from server.catalogue.architecture import PUBLISHED
from server.catalogue.files import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX,
    NO_TOKENIZER,
    OTHER_FILES,
    TORCH_FILE,
    WEIGHTS_FILE,
    WEIGHTS_FILES,
    has_tokenizer,
    is_adapter,
    shards,
)
from server.catalogue.notes import SHA256, digest
from server.checkpoint.tensors import Report

constants.DOWNLOAD_CHUNK_SIZE = 1 << 20  # of its 10 MiB, up to all are lost with a connection, and progress would jump
FULL = {errno.ENOSPC, errno.EDQUOT}
LOOK_S = 0.1
"""How often the growing file is looked at."""
LOCK_S = 0.1
"""How long a lock is tried that another download may hold."""
HOW_TO_LOG_IN = "set HF_TOKEN in the daemon's environment, or run hf auth login as the daemon's user"
EXPECTED: tuple[type[Exception], ...] = (*FAILED, LocalEntryNotFoundError, HFValidationError, UnicodeError, OSError)
"""Errors of the library that are put into words of our own for the user."""
T = TypeVar("T")


class Missing(Exception):
    """The repository has no such file."""


class Repository:
    """One model on the hub. Every method can raise LoadFailed, UnknownModel or BadModel, each saying what to do.

    config(), tokenizer() and weights() are called in this order, so that what each brings is checked before the next.
    """

    def __init__(self, name: str, cache: Path, models_dir: Path, progress: Report) -> None:
        self._name = name
        self._page = f"{constants.ENDPOINT}/{name}"
        self._cache = cache
        self._models_dir = models_dir
        self._progress = progress
        self._place = f"models--{name.replace('/', '--')}"
        self._blobs = cache / self._place / "blobs"
        self._folder: Path | None = None

    def config(self) -> Path:
        """Fetch the configuration; return the folder that will hold all files."""
        self._connect()
        self._fetch_small([CONFIG_FILE, ADAPTER_CONFIG])
        if self._folder is None:
            raise BadModel(f"{self._page} has no {CONFIG_FILE}, so it cannot be read")
        self._fetch_small([GENERATION_FILE])
        return self._folder

    def tokenizer(self) -> None:
        """Fetch every other file but the weights."""
        self._fetch_small([file for file in OTHER_FILES if file != GENERATION_FILE])
        if not self._adapts and not (self._folder and has_tokenizer(self._folder)):
            raise BadModel(f"{self._page}: {NO_TOKENIZER}")

    def weights(self) -> None:
        """Fetch the weights, and check their SHA-256."""
        weights = self._weights()
        if not weights:
            whole = f"{WEIGHTS_FILE} or {TORCH_FILE}, whole or in shards"
            wanted = " or ".join(ADAPTER_FILES) if self._adapts else whole
            raise BadModel(f"{self._page} has no {wanted} (other formats are not read)")
        for sent in weights.values():
            self._call(partial(self._clear, sent))
        self._check_disk(sum((sent.size or 0) - self._arrived(sent) for sent in weights.values()))
        folder = self._fetch(weights)
        for file, sent in weights.items():
            self._verify(folder / file, sent.etag or "")

    @property
    def _adapts(self) -> bool:
        """Whether it has an adapter, which is what then counts in it."""
        return self._folder is not None and is_adapter(self._folder)

    def complete(self, files: Iterable[str], commit: str) -> None:
        """Fetch those of the small files that a commit has. What it has not is noted in the cache by the library."""
        if not self._connect(commit):
            raise LoadFailed(f"{self._page} does not give commit {commit}, which the cache has")
        self._fetch_small(files, commit)

    def _connect(self, commit: str | None = None) -> bool:
        """Return whether config.json is there.

        It is asked for once: the library's own tries take half a minute to find out that there is no network.
        """

        def ask() -> None:
            if constants.HF_HUB_OFFLINE:
                raise OfflineModeIsEnabled
            address = hf_hub_url(self._name, CONFIG_FILE, revision=commit)
            hf_raise_for_status(get_session().head(address, headers=build_hf_headers(), timeout=CONTACT_S))

        self._progress("connect", 0, 1, "hub")
        there = False
        with contextlib.suppress(Missing):
            self._call(ask)
            there = True
        self._progress("connect", 1, 1, "hub")
        return there

    def _fetch_small(self, files: Iterable[str], commit: str | None = None) -> None:
        """Download those of the files that the repository has."""
        files = list(files)
        for done, file in enumerate(files):
            with contextlib.suppress(Missing):
                self._download(file, partial(self._progress, "tokenizer", done, len(files), "files"), commit)
        self._progress("tokenizer", len(files), len(files), "files")

    def _weights(self) -> dict[str, HfFileMetadata]:
        """Return the files of the weights in the order in which a folder is read; of shards those of the index."""
        for name in ADAPTER_FILES if self._adapts else WEIGHTS_FILES:
            found = self._metadata([name])
            if found and name.endswith(INDEX):
                named = shards(self._fetch(found) / name)
                found = self._metadata(named)
                if missing := [shard for shard in named if shard not in found]:
                    raise BadModel(f"{self._page} has no {missing[0]}, which its {name} names")
            if found:
                return found
        return {}

    def _metadata(self, files: Iterable[str]) -> dict[str, HfFileMetadata]:
        """Return sizes and digests of those of the files that the repository has."""
        found = {}
        for file in files:
            with contextlib.suppress(Missing):
                found[file] = self._call(partial(get_hf_file_metadata, hf_hub_url(self._name, file), timeout=CONTACT_S))
        return found

    def _fetch(self, files: dict[str, HfFileMetadata]) -> Path:
        """Download what is not there yet, reporting the bytes of all files together; return the folder."""
        total, done = sum(found.size or 0 for found in files.values()), 0
        for file, found in files.items():
            look = partial(self._look, found, done, total)
            folder = self._download(file, look)
            done += found.size or 0
        self._progress("download", total, total, "bytes")
        return folder

    def _look(self, found: HfFileMetadata, before: int, total: int) -> None:
        growing = [_size(file) for file in self._blobs.glob(f"{found.etag}.*incomplete")]
        whole = _size(self._blobs / str(found.etag))  # its name from the moment on when all of it is there
        self._progress("download", before + max(*growing, whole, 0), total, "bytes")

    def _download(self, file: str, look: Callable[[], None], commit: str | None = None) -> Path:
        """Download a file in a thread; this one, which owns the worker's socket, has a look now and then."""
        look()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._fetch_one, file, commit)
            pool.submit(leave)
            while wait([future], LOOK_S).not_done:
                look()
        folder = Path(self._call(future.result)).parent
        self._folder = self._folder or folder
        if folder != self._folder:
            raise LoadFailed(f"{self._name} changed on the hub while it was downloaded; load it again")
        return folder

    def _fetch_one(self, file: str, commit: str | None) -> str:
        """Download a file; after a broken connection it goes on, as long as each one brings something."""
        while True:
            had = self._partly()
            try:
                return hf_hub_download(self._name, file, revision=commit, cache_dir=self._cache, etag_timeout=CONTACT_S)
            except CUT:
                if self._partly() <= had:
                    raise

    def _partly(self) -> int:
        """Return the number of bytes that are there of cut downloads and that the library can go on with."""
        return sum(_size(file) for file in self._blobs.glob("*.incomplete") if file.name.count(".") == 1)

    def _arrived(self, found: HfFileMetadata) -> int:
        """Return how much of a file is on the disk."""
        return max(_size(self._blobs / str(found.etag)), _size(self._blobs / f"{found.etag}.incomplete"))

    def _clear(self, found: HfFileMetadata) -> None:
        """Delete what no download can go on with: parts under random names, and one that is too long."""
        parts = [
            file
            for file in self._blobs.glob(f"{found.etag}.*incomplete")
            if file.name.count(".") > 1 or _size(file) > (found.size or 0)
        ]
        lock = self._cache / ".locks" / self._place / f"{found.etag}.lock"
        with contextlib.suppress(TimeoutError):  # somebody downloads it just now
            if parts:
                lock.parent.mkdir(parents=True, exist_ok=True)
                with WeakFileLock(lock, timeout=LOCK_S):
                    for file in parts:
                        file.unlink(missing_ok=True)

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
        """Call the library. Raises: Missing, its errors in words of our own, and the disk's."""
        try:
            return call()
        except EXPECTED as e:
            raise self._explained(e) from e

    def _explained(self, error: BaseException) -> BaseException:
        """Return an error of the library in words of our own, for the user."""
        if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
            return self._explained(error.__cause__)
        if isinstance(error, HfHubHTTPError):
            return self._refused(error)
        if isinstance(error, HFValidationError):
            return UnknownModel(f"{self._name} is not the name of a repository: {error}")
        if isinstance(error, UnicodeError):
            return LoadFailed(f"this server's token has characters that no token has: {HOW_TO_LOG_IN}")
        if isinstance(error, FileMetadataError):
            return LoadFailed(f"{constants.ENDPOINT} does not say which file it gives; is it a HuggingFace hub?")
        if isinstance(error, OfflineModeIsEnabled):
            return self._not_here("HF_HUB_OFFLINE is set")
        if isinstance(error, CUT):
            return self._was_cut()
        if isinstance(error, (LocalEntryNotFoundError, *UNREACHABLE)):
            return self._not_here(f"{constants.ENDPOINT} cannot be reached")
        if isinstance(error, FAILED):
            return LoadFailed(f"the hub does not give {self._name}: {error}")
        if isinstance(error, OSError) and error.errno in FULL:
            return LoadFailed(
                f"the disk of {self._cache} is full: make room there, or set HF_HUB_CACHE to a folder on a larger "
                f"one; when {self._name} is loaded again, its download {self._next_time()}"
            )
        if isinstance(error, OSError) and error.errno is None:  # the library's word for a file that ended too soon
            return self._was_cut()
        return error

    def _refused(self, error: HfHubHTTPError) -> Exception:
        """Return what an answer of the hub means that is an error."""
        status = error.response.status_code if error.response is not None else 0
        word = str(error.response.headers.get("X-Error-Message", ""))[:200] if error.response is not None else ""
        if isinstance(error, GatedRepoError) and get_token():
            return LoadFailed(
                f"{self._page} is gated, and the account of this server's token may not read it: accept its terms on "
                "that page with that account, or wait until its owners let you in; then load again"
            )
        if isinstance(error, GatedRepoError):
            return LoadFailed(
                f"{self._page} is gated: accept its terms on that page, and give this server a token of the same "
                f"account: {HOW_TO_LOG_IN}"
            )
        if status == 401 and ("credentials" in word or not isinstance(error, RepositoryNotFoundError)):
            return LoadFailed(
                f"{constants.ENDPOINT} does not accept this server's token, which is wrong or has expired: make "
                f"another at {constants.ENDPOINT}/settings/tokens, and {HOW_TO_LOG_IN}"
            )
        if isinstance(error, RepositoryNotFoundError):
            return UnknownModel(
                f"{constants.ENDPOINT} has no model {self._name}, or only for those who log in (HF_TOKEN)"
            )
        if status == 404:  # a mirror's word may lack the code by which the library knows that a file does not exist
            return Missing()
        if status == 403:
            return LoadFailed(f"{constants.ENDPOINT} does not let this server's token read {self._name}: {word!a}")
        return LoadFailed(f"the hub does not give {self._name}: {error}")

    def _not_here(self, why: str) -> LoadFailed:
        known = PUBLISHED.get(self._name)
        size = f" (about {known.published_bytes / 1e6:.0f} MB)" if known else ""
        return LoadFailed(
            f"{self._name} is not on this server's disk, and {why}. {CONFIG_FILE}, {WEIGHTS_FILE} and "
            f"tokenizer.json{size} would be downloaded from {self._page}; without the hub, put a folder with these "
            f"files at {self._models_dir / self._name.rpartition('/')[2]}"
        )

    def _was_cut(self) -> LoadFailed:
        return LoadFailed(f"the download of {self._name} was cut; load again, and it {self._next_time()}")

    def _next_time(self) -> str:
        if RESUMES:
            return "goes on where it stopped"
        return (
            f"begins again: huggingface_hub {huggingface_hub.__version__} keeps nothing of a download that was cut "
            "(versions before 1.18 do)"
        )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
