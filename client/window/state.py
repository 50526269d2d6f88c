"""AppState: all that the views draw. Plain data; update.apply changes it. Views and window note only what is drawing's own: focus, layout, scale."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from client.window.document import Document
from client.window.parameters import OWN, fits
from protocol import messages as m
from protocol.keys import DEFAULT_ENDPOINT

Status: TypeAlias = Literal["off", "connecting", "ready", "stuck", "refused", "lost"]
MAX_HISTORY, MAX_POINTS = 500, 2000
KEPT_LOGPROBS = 50
"""So many of the newest generations keep their tokens' probabilities, which take far more memory than their texts."""
PANELS = ("Connection", "Model", "Sampling", "Inference", "Tokens", "History", "Compare", "Settings", "Keys")
Settings: TypeAlias = dict[str, Any]
"""Generation settings by name, those of messages.SETTINGS that differ from the default."""


@dataclass
class Link:
    """What is known of the server."""

    server: str = DEFAULT_ENDPOINT
    """As typed: an endpoint, a connect line, a kept name."""
    server_key: str = ""
    key_file: str = ""
    status: Status = "off"
    trouble: str = ""
    since: float = 0.0
    next_look: float = 0.0
    """When the server is asked for a sign of life again."""
    looking: bool = False
    rtt_ms: float = 0.0
    info: m.ServerInfo | None = None
    workers: list[m.WorkerHealth] = field(default_factory=list)
    worker_stats: list[m.WorkerStats] = field(default_factory=list)
    memory: int = 0
    kept: list[str] = field(default_factory=list)
    """Names of servers whose connect lines were kept."""


@dataclass
class Doing:
    """How far a load or a measurement is."""

    name: str
    stage: str = "start"
    done: int = 0
    total: int = 1
    unit: str = ""
    stage_began: float = 0.0
    stage_done: int = 0
    """What was done when the stage began, for the rate."""
    rate: float = 0.0
    """Units a second."""


@dataclass
class Models:
    known: list[m.ModelInfo] = field(default_factory=list)
    model: str = ""
    engine: str = ""
    precision: str = ""
    compile: bool = False
    replicas: int | None = None
    """So many processes are to hold the chosen model, as entered; None: nothing was."""
    loading: Doing | None = None
    measuring: Doing | None = None
    error: str = ""

    def chosen(self) -> m.ModelInfo | None:
        return next((info for info in self.known if info.name == self.model), None)

    @property
    def context(self) -> int:
        """The chosen model's, in tokens; where it is not known, GPT-2's."""
        info = self.chosen()
        return info.context if info and info.context else 1024


@dataclass
class Generating:
    """The generation that writes into the page."""

    start: int
    end: int
    """Bytes of the page that it has written."""
    prompt: str
    asked: int
    """New tokens at most."""
    began: float
    place: int = 0
    """In the server's queue; 0: running."""
    stopping: bool = False
    instead_of: int | None = None
    """The take that stood here before and comes back if nothing is written."""


@dataclass
class Branch:
    """A token was chosen in the token view: what it takes to go on from it is being found out."""

    start: int
    prompt: str
    ids: list[int]
    """The tokens after the prompt, the chosen one last."""
    prompt_ids: list[int] | None = None
    text: str | None = None


@dataclass
class Page:
    document: Document = field(default_factory=Document)
    path: Path | None = None
    saved: bytes = b""
    """What the file holds."""
    autosaved: int = 0
    """The version that was autosaved."""
    generating: Generating | None = None
    branch: Branch | None = None
    last: int | None = None
    """Where the last generation began."""
    move_cursor: bool = False
    """The text field takes over the document's cursor in its next frame."""
    counted: int = -1
    """The version that tokens were counted of."""
    counting: bool = False
    changed_at: float = 0.0
    tokens: int = 0
    """Before the cursor; of a long page an estimate."""
    exact: bool = True
    sight: int = 0
    """The byte where the model's sight begins."""
    error: str = ""

    @property
    def dirty(self) -> bool:
        return self.document.data != self.saved


@dataclass
class Shown:
    """A generation whose tokens the token view shows."""

    start: int
    prompt: str
    result: m.Generated


@dataclass
class Ledgers:
    """The last generation's times, and those of the session."""

    last: m.Generated | None = None
    whole_ms: float = 0.0
    """As the window saw it: the difference to the server's is the network's share."""
    series: dict[str, deque[tuple[float, float, float]]] = field(default_factory=dict)
    """model/engine/precision -> (number of the generation, tokens a second, ms to the first token)."""
    count: int = 0


@dataclass
class Column:
    """One of the compared ways."""

    model: str = ""
    engine: str = ""
    precision: str = ""
    preset: str = ""
    settings: Settings = field(default_factory=dict)
    """The preset's; empty: those of the Sampling panel."""
    text: str = ""
    result: m.Generated | None = None
    error: str = ""
    parts: list[tuple[str, bool]] = field(default_factory=list)
    """The text, cut into (part, differs from the first column's)."""


@dataclass
class Compare:
    prompt: str = "Shall I compare thee"
    seed: int = 1
    max_new_tokens: int = 40
    columns: list[Column] = field(default_factory=lambda: [Column(), Column()])
    running: int | None = None
    """The column whose turn it is."""
    stopping: bool = False
    """It was stopped, and what was under way has not ended yet: its end must not be taken for that of the next comparison's."""


@dataclass(frozen=True)
class Entry:
    """One generation of the session."""

    number: int
    at: float
    """Unix time."""
    prompt: str
    result: m.Generated
    endpoint: str


@dataclass
class History:
    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))
    search: str = ""
    chosen: int | None = None

    def entry(self, number: int | None) -> Entry | None:
        return next((entry for entry in self.entries if entry.number == number), None)


@dataclass
class Preferences:
    """What is kept in the user's config folder."""

    font: str = ""
    """The path of a font file; empty: the one that comes along."""
    page_font: str = ""
    font_size: float = 16.0
    page_font_size: float = 18.0
    scale: float = 1.0
    theme: Literal["dark", "light"] = "dark"
    enter_generates: bool = False
    server: str = DEFAULT_ENDPOINT
    recent: list[str] = field(default_factory=list)
    sampling: Settings = field(default_factory=dict)
    presets: dict[str, Settings] = field(default_factory=dict)
    layout: str = ""
    """Dear ImGui's own description of where the panels are."""
    closed: list[str] = field(default_factory=lambda: ["Settings", "Keys"])
    """Panels that are not shown."""
    width: int = 1360
    height: int = 860


@dataclass
class Files:
    """The dialog for opening and saving, as far as it is open."""

    purpose: Literal["", "open", "save", "export"] = ""
    folder: str = ""
    name: str = ""
    listing: list[tuple[str, bool]] = field(default_factory=list)
    """(name, is a folder)."""
    error: str = ""
    content: str = ""
    """What an export writes."""


@dataclass
class Drafts:
    """What is being typed in small fields."""

    preset: str = ""
    font: str = ""


@dataclass
class AppState:
    link: Link = field(default_factory=Link)
    models: Models = field(default_factory=Models)
    page: Page = field(default_factory=Page)
    shown: Shown | None = None
    ledgers: Ledgers = field(default_factory=Ledgers)
    compare: Compare = field(default_factory=Compare)
    history: History = field(default_factory=History)
    preferences: Preferences = field(default_factory=Preferences)
    files: Files = field(default_factory=Files)
    drafts: Drafts = field(default_factory=Drafts)
    fonts: list[tuple[str, str]] = field(default_factory=list)
    """(name, path) of the system's fonts."""
    fonts_changed: bool = True
    """The window loads the fonts anew before its next frame."""
    screen_scale: float = 1.0
    """What the system says of the screen that the window is on: 2.0 where an ordinary size would be too small by half."""
    focus_page: int = 0
    """For so many frames the page comes to the front."""
    arrange: bool = True
    """The panels are put in their first places."""
    notice: str = ""
    notice_at: float = 0.0
    confirm: Literal["", "new", "open", "quit"] = ""
    """What waits for an answer about unsaved changes."""
    recovered: str | None = None
    """The autosaved text of a session that crashed, until the user has answered."""
    quitting: bool = False
    now: float = 0.0
    """Monotonic seconds, of this frame."""
    unix: float = 0.0
    """Seconds since 1970, for what people read."""

    @property
    def settings(self) -> Settings:
        return self.preferences.sampling

    @property
    def engine(self) -> m.Engine | None:
        """The chosen one, as the server describes it."""
        return (
            next((e for e in self.link.info.engines if e.name == self.models.engine), None) if self.link.info else None
        )

    @property
    def compiles(self) -> bool:
        """The chosen engine and precision can be compiled."""
        return self.engine is not None and self.models.precision in self.engine.compiles

    @property
    def holders(self) -> list[m.WorkerHealth]:
        """The processes of the chosen model, engine and precision."""
        way = (self.models.model, self.models.engine, self.models.precision)
        return [w for w in self.link.workers if (w.model, w.engine, w.precision) == way]

    @property
    def loaded(self) -> bool:
        return any(w.state == "ready" for w in self.holders)

    @property
    def replicas(self) -> int:
        """How many hold the chosen model or are about to; 1 where none does, since a load makes one."""
        return max(1, sum(w.state != "stopping" for w in self.holders))

    @property
    def wanted(self) -> int | None:
        """How many replicas a load asks for; None: as many as there are."""
        return self.models.replicas if self.models.replicas != self.replicas else None

    @property
    def parameters(self) -> dict[str, m.Parameter]:
        return {p.name: p for p in self.link.info.parameters} if self.link.info else {}

    def setting(self, name: str) -> Any:
        """As chosen; else the server's default, or where none has said it, the protocol's."""
        parameter = self.parameters.get(name) or OWN[name]
        return self.settings.get(name, parameter.default)

    def fitting(self, settings: Settings) -> Settings:
        """Those that the server has, with values that they can have there."""
        known = self.parameters
        return {name: value for name, value in settings.items() if name in known and fits(known[name], value)}
