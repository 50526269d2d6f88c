"""Where a worker's model is: its folder, and that of its base; what is not on this disk is brought from the hub.

Small files come first, so that a model which is refused costs no download.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import BadModel, Gpt2dError
from server.catalogue.adapters import base_problem, tokenizer_folder
from server.catalogue.architecture import PUBLISHED, Architecture
from server.catalogue.catalogue import Catalogue, never_looked_for
from server.catalogue.files import CHAT_FILE, is_adapter
from server.checkpoint.lora import Changes
from server.checkpoint.tensors import Report
from server.launch.spec import Spec

if TYPE_CHECKING:
    from server.checkpoint.download import Repository

UNKNOWN = (
    "whether its repository has {} is not known: its folder in the hub's cache has none of them, and the hub cannot be "
    "asked now; if it has, texts may get other tokens than in training. Load it again when the hub can be reached"
)


@dataclass(frozen=True)
class Source:
    """A model's folders, whose configurations are there. What else is missing, `tokenizer` and `weights` fetch."""

    folder: Path
    base: Path | None
    """What an adapter is merged into; None: it is no adapter."""
    notices: tuple[str, ...]
    """Messages for the user about what could not be fetched."""
    missing: Repository | None
    """The repository of the last of the folders, where that is not on this disk."""
    fetched: bool
    """Whether anything was not on this disk, so that the gateway could not know the model's shape."""

    def tokenizer(self) -> Path:
        """Return the tokenizer's folder. Raises: BadModel, LoadFailed."""
        if self.missing:
            self.missing.tokenizer()
        return tokenizer_folder(self.folder, self.base)

    def weights(self, arch: Architecture) -> None:
        """Fetch the weights; an adapter is looked through before its base's. Raises: BadModel, LoadFailed, OSError."""
        if self.missing and self.base:
            Changes(self.folder, arch)
        if self.missing:
            self.missing.weights()


def find(spec: Spec, progress: Report) -> Source:
    """Return where the model is; the configurations are fetched, and an adapter that is on the hub as a whole.

    Raises: BadModel, LoadFailed, UnknownModel.
    """
    repository = None if spec.folder else _repository(spec.model, spec, progress)
    folder = repository.config() if repository else Path(spec.folder)
    notices = () if repository else _complete(spec.model, folder, spec, progress)
    if not is_adapter(folder):
        return Source(folder, None, notices, repository, fetched=repository is not None)
    if repository:
        repository.tokenizer()
        repository.weights()
    name, here = spec.base, spec.base_folder
    if not name:  # only now it can be known; the hub is allowed, or this adapter would not have come from it
        model = Catalogue(Path(spec.models_dir), Path(spec.hub_cache), allow_hub=True).base_of(folder)
        name, here = model.name, str(model.folder or "")
    missing = None if here else _repository(name, spec, progress)
    base = missing.config() if missing else Path(here)
    if problem := base_problem(base):
        raise BadModel(f"its base {name} {problem}")
    notices += () if missing else _complete(name, base, spec, progress)
    return Source(folder, base, notices, missing, fetched=repository is not None or missing is not None)


def _repository(name: str, spec: Spec, progress: Report) -> Repository:
    from server.checkpoint.download import Repository  # its libraries are needed for a download only

    return Repository(name, Path(spec.hub_cache), Path(spec.models_dir), progress)


def _complete(name: str, folder: Path, spec: Spec, progress: Report) -> tuple[str, ...]:
    """Fetch the small files that nobody looked for when the hub's cache got this folder; return messages for the user.

    Without them the tokenizer could differ from the one that the model was trained with.
    """
    unknown = [] if name in PUBLISHED else never_looked_for(folder)
    if unknown:
        try:
            _repository(name, spec, progress).complete(unknown, folder.name)
        except (Gpt2dError, OSError):
            missing = [name for name in unknown if not (folder / name).is_file() and name != CHAT_FILE]  # no token's
            return (UNKNOWN.format(", ".join(missing)),) if missing else ()
    return ()
