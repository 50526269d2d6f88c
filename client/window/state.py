"""AppState: all that the views draw. Plain data, which update.apply changes; the views and the window's loop change
only what belongs to drawing: focus, layout, scale. With slots, so that a message that names a field which does not
exist is an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from client import replicas
from client.window.alternatives import Alternatives, Tokens
from client.window.autosave import Autosaved
from client.window.pace import PIECES_MS
from client.window.parameters import OWN, fits
from client.window.preferences import Preferences, Settings
from client.window.results import Compare, History, Ledgers
from client.window.writing import REST_S, STOP_S, Hovered, Page
from protocol import messages as m
from protocol.keys import DEFAULT_ENDPOINT

Status: TypeAlias = Literal[
    "off",
    "connecting",
    "ready",
    "stuck",
    "late",
    "busy",
    "stopping",
    "failed",
    "refused",
    "version",
    "absent",
    "other",
    "lost",
]
GOES_ON = frozenset[Status]({"ready", "stuck", "late", "busy", "stopping", "failed"})
"""The connection is there, so that what is under way may still come to an end."""


@dataclass(slots=True)
class LinkState:
    """The connection, and what is known of the server."""

    server: str = DEFAULT_ENDPOINT
    """Address as typed: a host, an endpoint, the name of a saved server; of a connect line what stands before #."""
    secret: str = field(default="", repr=False)
    """What stands after the # of a connect line."""
    replaced: bool = False
    """The field takes over another address in its next frame."""
    endpoint: str = ""
    """Endpoint of the server that answers."""
    server_key: str = ""
    key_file: str = ""
    status: Status = "off"
    trouble: str = ""
    since: float = 0.0
    next_look: float = 0.0
    """Time at which the server is asked for a sign of life again."""
    looking: bool = False
    rtt_ms: float = 0.0
    info: m.ServerInfo | None = None
    workers: list[m.WorkerHealth] = field(default_factory=list)
    worker_stats: list[m.WorkerStats] = field(default_factory=list)
    memory: int = 0
    kept: list[str] = field(default_factory=list)
    """Names of the saved servers."""


@dataclass(slots=True)
class Doing:
    """Progress of a load, a measurement or a calibration."""

    name: str
    stage: str = "start"
    done: int = 0
    total: int = 1
    unit: str = ""
    stage_began: float = 0.0
    stage_done: int = 0
    """Units that were done when the stage began, for the rate."""
    rate: float = 0.0
    """Units a second."""


@dataclass(slots=True)
class Models:
    known: list[m.ModelInfo] = field(default_factory=list)
    model: str = ""
    engine: str = ""
    precision: str = ""
    compile: bool = False
    cache: str = ""
    """What the KV cache is to be made of, as chosen; empty: the default."""
    replicas: int | None = None
    """Number of processes that are to hold the chosen model, as entered; None: nothing was."""
    loading: Doing | None = None
    measuring: Doing | None = None
    calibrating: Doing | None = None
    byte_level: set[str] = field(default_factory=set)
    """Names of the models whose tokenizer is byte-level BPE, as far as they are loaded."""
    listed: bool = False
    """True once this server has said which models it has."""

    @property
    def working(self) -> bool:
        """True while a load, a measurement or a calibration is under way."""
        return any((self.loading, self.measuring, self.calibrating))

    def lost(self) -> None:
        """Forget what was under way."""
        self.loading = self.measuring = None
        self.calibrating = None

    def chosen(self) -> m.ModelInfo | None:
        return next((info for info in self.known if info.name == self.model), None)

    @property
    def way(self) -> tuple[str, str, str]:
        """Chosen model, engine and precision."""
        return replicas.way(self)

    @property
    def context(self) -> int:
        """Context of the chosen model, in tokens; where it is not known, that of GPT-2."""
        info = self.chosen()
        return info.context if info and info.context else 1024


@dataclass(frozen=True, slots=True)
class Question:
    """Whether models may be downloaded that are not on the server's disk."""

    downloads: list[m.ModelInfo]
    then: Any
    """The events.Action that follows if they may."""


@dataclass(slots=True)
class Files:
    """The dialog for opening and saving, while it is open."""

    purpose: Literal["", "open", "save", "export"] = ""
    folder: str = ""
    name: str = ""
    proposed: str = ""
    """Name that was proposed before it was known which are taken."""
    replaced: bool = False
    """The field takes over another name in its next frame."""
    listing: list[tuple[str, bool]] = field(default_factory=list)
    """(name, is a folder)."""
    error: str = ""
    content: str = ""
    """Text that an export writes; where `exists` is a file, empty: the page was to be saved there."""
    waiting: bool = False
    """The disk was asked for what the dialog is about."""
    exists: Path | None = None
    """A file that is replaced if the user says so."""
    wanted: str = ""
    """The recent file, or the page that was left behind, that waits for the answer about unsaved changes."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence near the page. update/notices.py puts them there and takes them away."""

    key: str
    """What it is about; there is one notice of each key."""
    text: str
    kind: Literal["info", "failed"] = "info"
    action: Any = None
    """The way out, which a button offers: an events.Action, or None."""
    label: str = ""
    """Text of that button."""
    until: float = math.inf
    """Monotonic time at which it goes away by itself."""


@dataclass(slots=True)
class Drafts:
    """What is being typed or dragged."""

    preset: str = ""
    font: str = ""
    sizes: dict[str, float] = field(default_factory=dict)
    """Preferences that a slider is at, until it is let go."""


@dataclass(slots=True)
class AppState:
    link: LinkState = field(default_factory=LinkState)
    models: Models = field(default_factory=Models)
    page: Page = field(default_factory=Page)
    alternatives: Alternatives = field(default_factory=Alternatives)
    hovered: Hovered | None = None
    ledgers: Ledgers = field(default_factory=Ledgers)
    compare: Compare = field(default_factory=Compare)
    history: History = field(default_factory=History)
    preferences: Preferences = field(default_factory=Preferences)
    files: Files = field(default_factory=Files)
    drafts: Drafts = field(default_factory=Drafts)
    fonts: list[tuple[str, str]] = field(default_factory=list)
    """(name, path) of the system's fonts."""
    fonts_changed: bool = True
    """The window loads the fonts again before its next frame."""
    screen_scale: float = 1.0
    """Scale of the screen that the window is on: 2.0 where the usual size would be too small by half."""
    focus_page: int = 3
    """Number of frames in which the page comes to the front: those until panels are in their places, at the start."""
    open_menus: bool = False
    """The first menu opens in the next frame, with the keyboard."""
    settling: int = 0
    """Number of frames until panels that were arranged are in their places."""
    focus_mode: bool = False
    """The page alone is shown."""
    esc_closes: bool = False
    """Esc closes what the last frame showed: a menu, a list, a panel over the page."""
    arrange: bool = True
    """The panels are put in their first places."""
    over: Literal["", "side", "drawer"] = ""
    """What lies over the page, in a window that is too small for both."""
    notices: list[Notice] = field(default_factory=list)
    """Oldest first."""
    asking: Question | None = None
    agreed: set[str] = field(default_factory=set)
    """Names of the models that may be downloaded."""
    confirm: Literal["", "new", "open", "quit", "recent", "recover"] = ""
    """Action that waits for an answer about unsaved changes."""
    left_behind: dict[str, Autosaved] = field(default_factory=dict)
    """Pages of sessions that crashed, by name, until they are restored or deleted."""
    recovering: bool = False
    """The user is asked what to do with them."""
    quitting: bool = False
    now: float = 0.0
    """Monotonic seconds, of this frame."""
    unix: float = 0.0
    """Seconds since 1970, for what people read."""
    interval_ms: int = PIECES_MS
    """Milliseconds between two pieces of a text to ask for: whoever draws the frames knows how many show something."""

    @property
    def asks(self) -> bool:
        """True while a dialog waits for its answer."""
        files = self.files
        return bool(files.purpose or self.confirm or self.asking) or self.recovering or files.exists is not None

    def spares_spaces(self, model: str) -> bool:
        """Return True if spaces at the end of a prompt are not sent to a model."""
        return self.preferences.spare_spaces and model in self.models.byte_level

    def to_download(self, info: m.ModelInfo) -> bool:
        """Return True if a model has to be downloaded, and nobody has agreed to that."""
        return not info.on_disk and info.name not in self.agreed

    @property
    def unsent_spaces(self) -> int:
        """Number of spaces before the cursor that would not be sent."""
        text, cursor = self.page.document.text, self.page.document.cursor
        sent = cursor  # asked in every frame: the page is not copied for it
        while sent and text[sent - 1] == " ":
            sent -= 1
        return cursor - sent if sent and self.spares_spaces(self.models.model) else 0

    @property
    def due(self) -> float:
        """Monotonic time at which something on the screen changes by itself; infinity: nothing will."""
        going = self.page.generating
        stopped = [going.stopped_at + STOP_S] if going and going.stopping else []
        stopped += [self.compare.stopped_at + STOP_S] if self.compare.stopping else []
        rests = [self.hovered.since + REST_S] if self.hovered and not self.hovered.opened else []
        return min([notice.until for notice in self.notices] + stopped + rests, default=math.inf)

    def tokens_at(self, offset: int) -> Tokens | None:
        """Return the tokens of the continuation that the page shows at an offset, if they are kept."""
        document = self.page.document
        mark = document.mark_at(offset)
        if mark is None:
            return None
        parts = self.alternatives.within(document.text, document.version, mark.start, mark.end)
        return next((part for part in parts if part.start <= offset <= part.places[-1]), None)

    def shades(self, first: int, last: int) -> list[tuple[int, int, float]]:
        """Return the tokens of the page between two offsets as (start, end, strength): 1 for one that was most
        unlikely, 0 for one that was certain.
        """
        document, found = self.page.document, list[tuple[int, int, float]]()
        if not self.preferences.shade_tokens:
            return found
        for span in document.spans:
            if span.start < last and span.end > first:
                for tokens in self.alternatives.within(document.text, document.version, span.start, span.end):
                    found += tokens.shades(first, last)
        return found

    def said(self, key: str) -> str:
        """Return the text of the notice of this key; empty if there is none."""
        return next((notice.text for notice in self.notices if notice.key == key), "")

    @property
    def settings(self) -> Settings:
        return self.preferences.sampling

    @property
    def engine(self) -> m.Engine | None:
        """The chosen engine, as the server describes it."""
        engines = self.link.info.engines if self.link.info else []
        return next((engine for engine in engines if engine.name == self.models.engine), None)

    @property
    def compiles(self) -> bool:
        """True if the chosen engine and precision can be compiled."""
        return self.engine is not None and self.models.precision in self.engine.compiles

    @property
    def caches(self) -> dict[str, int]:
        """What the chosen model's KV cache can be made of, the default first, and the memory that it then takes."""
        info = self.models.chosen()
        ways = info.precisions if info else []
        found = next((p for p in ways if (p.engine, p.precision) == self.models.way[1:]), None)
        return found.caches if found else {}

    @property
    def holders(self) -> list[m.WorkerHealth]:
        """Processes of the chosen model, engine and precision."""
        return [w for w in self.link.workers if replicas.way(w) == self.models.way]

    @property
    def loaded(self) -> bool:
        return any(w.state == "ready" for w in self.holders)

    @property
    def may_load(self) -> bool:
        """True if the key of this connection may load, measure, calibrate and unload models."""
        return self.link.info is not None and self.link.info.role == "admin"

    @property
    def replicas(self) -> int:
        """Number of processes that hold the chosen model or are about to; 1 where none does, since a load makes one."""
        return max(1, sum(w.state != "stopping" for w in self.holders))

    @property
    def wanted(self) -> int | None:
        """Number of replicas that a load asks for; None: as many as there are."""
        return self.models.replicas if self.models.replicas != self.replicas else None

    @property
    def parameters(self) -> dict[str, m.Parameter]:
        return {p.name: p for p in self.link.info.parameters} if self.link.info else {}

    def setting(self, name: str) -> Any:
        """Return the value that was chosen; else the server's default, or where it has named none, the protocol's."""
        parameter = self.parameters.get(name) or OWN[name]
        return self.settings.get(name, parameter.default)

    def fitting(self, settings: Settings) -> Settings:
        """Return those of the settings that the server has, with values that they can have there."""
        known = self.parameters
        return {name: value for name, value in settings.items() if name in known and fits(known[name], value)}
