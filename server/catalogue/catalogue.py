"""Which models there are: their names and folders. Loads no model library: the gateway imports it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import BadModel, UnknownModel
from protocol.messages import MAX_REPLICAS
from server.catalogue.adapters import adapted, base_problem, read_adapter, tokenizer_folder
from server.catalogue.architecture import PUBLISHED, Architecture, read_architecture
from server.catalogue.engines import ENGINES, choose_engine
from server.catalogue.files import (
    ADAPTER_CONFIG,
    CONFIG_FILE,
    EMBEDDED_FOLDER,
    NO_TOKENIZER,
    OTHER_FILES,
    has_tokenizer,
    is_adapter,
    model_files,
    without_folder,
)

MODELS_FOLDER = "the folder of --models-dir"
"""What clients are sent instead of its path."""
DEMO = "demo"
DEMO_FOLDER = EMBEDDED_FOLDER
HELD_OUT_FILE = DEMO_FOLDER / "held_out.txt"
"""The text to measure with: of two works that the embedded model was not trained on (its README.md)."""
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
"""owner/name on the hub."""
COMMIT = re.compile("[0-9a-f]{40}")
OWNERS = dict.fromkeys(PUBLISHED, "openai-community") | {"distilgpt2": "distilbert"}
"""The hub redirects the short names to these owners'; a cache may have a model under either."""
SHORT = {f"{owner}/{name}": name for name, owner in OWNERS.items()}


@dataclass(frozen=True)
class Model:
    """A model that can be had: in `folder`, or where that is None from the hub, whose repository is `name`.

    `architecture` is None where it is not known yet, and where a `problem` says why the model cannot be loaded.
    """

    name: str
    folder: Path | None
    architecture: Architecture | None
    file_bytes: int = 0
    problem: str = ""
    base: Model | None = None
    """What an adapter is merged into; None: it is no adapter, or not known yet."""

    @property
    def on_disk(self) -> bool:
        """Whether nothing has to be downloaded."""
        return self.folder is not None and (self.base is None or self.base.on_disk)

    @property
    def base_folder(self) -> Path | None:
        return self.base.folder if self.base else None


class Catalogue:
    """The embedded model, the hub's GPT-2s and every folder of `models_dir`, which comes before a name of the hub.

    Reads the disk each time, so that new folders show. `allow_hub` admits every other repository of the hub, too.
    """

    def __init__(self, models_dir: Path, hub_cache: Path, *, allow_hub: bool = False) -> None:
        self._models_dir = models_dir
        self._hub_cache = hub_cache
        self._allow_hub = allow_hub

    def models(self) -> list[Model]:
        """Return every model. Reads a few files of each, which takes long where there are many."""
        folders = self._folders()
        names = dict.fromkeys([DEMO, *PUBLISHED, *folders])
        return [self._model(name, self._folder(name, folders)) for name in names] + list(self._cached())

    def find(self, name: str) -> Model:
        """Look at that model alone. Raises: UnknownModel, BadModel."""
        folders = self._folders()
        folder = self._folder(name, folders)
        if folder is None and name not in PUBLISHED:
            if not REPOSITORY.fullmatch(name):
                there = ", ".join(dict.fromkeys([DEMO, *PUBLISHED, *folders]))
                raise UnknownModel(f"no model {name!r} here; there are: {there} ({MODELS_FOLDER} is looked at)")
            if not self._allow_hub:
                raise UnknownModel(
                    f"{name} would come from the HuggingFace hub, which this server allows only with --allow-hub"
                )
        model = self._model(name, folder)
        if model.problem:
            raise BadModel(f"{name}: {model.problem}")
        return model

    def parse(self, name: str) -> tuple[Model, str, str, int]:
        """Read model[/engine[/precision]][:replicas], where model may be owner/name. Raises: UnknownModel, BadModel."""
        way, replicas = name, "1"
        found = re.fullmatch(r"(.+):(\d{1,2})", name, re.DOTALL)
        if found and not self._has(name):  # a folder may be called so
            way, replicas = found.groups()
        if not 1 <= int(replicas) <= MAX_REPLICAS:
            raise BadModel(f"{name}: the number of replicas must be 1 to {MAX_REPLICAS}")
        model, *rest = way.split("/")
        if rest and rest[0] not in ENGINES and not self._has(model):
            model = f"{model}/{rest.pop(0)}"
        if len(rest) > 2:
            raise BadModel(f"{name}: expected model, model/engine or model/engine/precision")
        engine, precision = [*rest, "", ""][:2]
        return (self.find(model), *choose_engine(engine or None, precision or None), int(replicas))

    def _has(self, name: str) -> bool:
        return name in PUBLISHED or self._folder(name, self._folders()) is not None

    def _folder(self, name: str, folders: dict[str, Path]) -> Path | None:
        """Return where a model's files are, if they are on this disk; `folders` are those of `models_dir`."""
        if name == DEMO:
            return DEMO_FOLDER
        if name in folders:
            return folders[name]
        return self._snapshot(name) if name in PUBLISHED or self._allow_hub else None

    def _model(self, name: str, folder: Path | None) -> Model:
        if folder:
            return self._inspect(name, folder)
        architecture = PUBLISHED.get(name)
        return Model(name, None, architecture, architecture.published_bytes if architecture else 0)

    def base_of(self, folder: Path) -> Model:
        """Return the base of the adapter in a folder. Raises: BadModel, which says what would make it loadable."""
        written = read_adapter(folder).base
        name = SHORT.get(written, written)
        if not self._has(name) and (problem := self._no_base(written)):
            raise BadModel(f"{ADAPTER_CONFIG} has base_model_name_or_path={written[:200]!r}, {problem}")
        base = self._folder(name, self._folders())
        if problem := base_problem(base):
            raise BadModel(f"its base {name} {problem}")
        model = self._model(name, base)
        if model.problem:
            raise BadModel(f"its base {name}: {model.problem}")
        return model

    def _no_base(self, written: str) -> str:
        """Say why a name that no model here has is none of a base; empty if the hub may be asked for it."""
        if REPOSITORY.fullmatch(written):
            here = f"put its folder into {MODELS_FOLDER} and write the folder's name instead"
            return "" if self._allow_hub else f"which this server has not: {here}, or start the server with --allow-hub"
        there = ", ".join(dict.fromkeys([DEMO, *PUBLISHED, *self._folders()]))
        if re.search(r"[/\\:~]|^\.", written):
            return f"a path, and bases are found by name: write one of {there}, or put its folder into {MODELS_FOLDER}"
        return f"and there is no such model; there are: {there} (put its folder into {MODELS_FOLDER})"

    def _inspect(self, name: str, folder: Path) -> Model:
        try:
            if is_adapter(folder):
                return self._adapter(name, folder)
            arch = read_architecture(folder)
            files = model_files(folder)
            if not has_tokenizer(folder):
                raise BadModel(NO_TOKENIZER)
            return Model(name, folder, arch, files.weight_bytes)
        except (BadModel, OSError) as e:
            return Model(name, folder, None, problem=without_folder(e))

    def _adapter(self, name: str, folder: Path) -> Model:
        """Raises: BadModel, OSError."""
        files = model_files(folder)
        base = self.base_of(folder)
        tokenizer_folder(folder, base.folder or folder)
        arch = base.architecture and adapted(base.architecture, folder)
        return Model(name, folder, arch, files.weight_bytes + base.file_bytes, base=base)

    def _folders(self) -> dict[str, Path]:
        """Names and folders; those whose names are not text are left out, and so is a folder that cannot be read."""
        return {
            entry.name: Path(entry.path)
            for entry in _entries(self._models_dir)
            if not entry.name.startswith(".") and entry.name.isprintable() and _is_folder(entry)
        }

    def _cached(self) -> Iterator[Model]:
        """Other GPT-2s that the hub's cache holds, where they are allowed."""
        published = {f"{owner}/{name}" for name, owner in OWNERS.items()} | set(PUBLISHED)
        for entry in _entries(self._hub_cache) if self._allow_hub else []:
            name = entry.name.removeprefix("models--").replace("--", "/")
            if entry.name.startswith("models--") and REPOSITORY.fullmatch(name) and name not in published:
                snapshot = self._snapshot(name)
                model = self._inspect(name, snapshot) if snapshot else None
                if model and not model.problem:
                    yield model

    def _snapshot(self, name: str) -> Path | None:
        """Return the folder in the hub's cache that has all of a model's files, if there is one.

        The layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
        """
        for repository in (name, f"{OWNERS.get(name, '')}/{name}"):
            folder = self._hub_cache / f"models--{repository.replace('/', '--')}"
            try:
                commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
                snapshot = folder / "snapshots" / commit
                whole = (snapshot / CONFIG_FILE).is_file() and has_tokenizer(snapshot)
                if COMMIT.fullmatch(commit) and (whole or is_adapter(snapshot)):
                    model_files(snapshot)
                    return snapshot
            except (OSError, ValueError, BadModel):
                continue
        return None


def never_looked_for(folder: Path) -> list[str]:
    """Return the small files that are not in a folder of the hub's cache, and of which it has no note that they exist.

    Such a folder was made by a program that needs fewer files than we do, or by an earlier version of this one. Where
    the hub's library looked for a file and found none, it noted that in `.no_exist`.
    """
    if folder.parent.name != "snapshots" or not COMMIT.fullmatch(folder.name):
        return []
    noted = folder.parent.parent / ".no_exist" / folder.name
    return [name for name in OTHER_FILES if not (folder / name).is_file() and not (noted / name).is_file()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, by name; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
