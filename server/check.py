"""Check for --check: whether the daemon could start with a Config, without starting it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from protocol.errors import RequestError
from protocol.keys import KeyFileError, read_secret
from server.catalogue.catalogue import Catalogue
from server.catalogue.engines import native_problem
from server.config import Config
from server.gateway.auth import Keyring
from server.settings import SettingsError


def check(config: Config) -> None:
    """Check keys, preloads and folders. Raises: SettingsError for the first that would prevent a start."""
    if config.key and config.authorised_keys:
        with _about("key"):
            read_secret(config.key)
        with _about("authorised_keys"):
            Keyring(config.authorised_keys)
    with _about("preload"):
        catalogue = Catalogue(config.models_dir, config.hub_cache, allow_hub=config.allow_hub)
        for name in config.preload:
            catalogue.parse(name)
    forced = "" if config.cluster else config.instruction_set  # a cluster's nodes have processors of their own
    if forced and (problem := native_problem(forced)):
        raise SettingsError(f"instruction_set: {problem}")
    # Neither needs to exist yet: models come later, and the cache is made when something is built.
    with _about("models_dir"):
        if config.models_dir.exists():
            next(config.models_dir.iterdir(), None)
    with _about("cache_dir"):
        folder = next(p for p in (config.cache_dir.absolute(), *config.cache_dir.absolute().parents) if p.exists())
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    try:
        yield
    except (KeyFileError, RequestError, OSError) as e:
        raise SettingsError(f"{name}: {e}") from None
