"""The real window, driven through what the documents' pictures show; it takes each before the frame is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from imgui_bundle import imgui
from OpenGL import GL
from PIL import Image

from client.window import events as e
from scripts.bench.window import Driven

TEXT = """\
ACT I.

SCENE I. A garden by the sea, at night.

VIOLA.
Shall I compare thee to a winter's night?
Thou art more quiet, and thy stars more far:
"""
OWN = """

DUKE.
Speak on, sweet youth; the night is long, and I
"""
SEED = 7
SHOWN_TOKENS = 48
"""Number of tokens of each branch from which on they are taken."""


class Photographer(Driven):
    """A window that goes through what the pictures show, and takes them."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        super().__init__(endpoint, "demo")
        self._folder, self._next_picture = folder, ""
        render = self.window.backend.render

        def rendered(draw_data: imgui.ImDrawData) -> None:
            render(draw_data)
            if self._next_picture:
                save(self._folder / f"{self._next_picture}.png")
                self._next_picture = ""

        self.window.backend.render = rendered  # type: ignore[method-assign]

    def steps(self) -> Iterator[float | Callable[[], bool]]:
        state, tell = self.state, self.window.app.tell
        yield lambda: state.link.status == "ready" and bool(state.models.known)
        tell(e.Choose("demo", state.models.engine, state.models.precision))
        tell(e.Edit(0, 0, TEXT, "pasted"))
        yield from self._written("generate", 40, SEED)

        state.preferences.sampling = {"seed": SEED, "max_new_tokens": 240, "min_new_tokens": 240}
        yield lambda: not state.notices  # before four texts, which are written in no time
        tell(e.Do("branches"))
        enough = 4 * SHOWN_TOKENS
        yield (
            lambda: (
                not state.page.busy or (state.page.generating is not None and state.page.generating.tokens >= enough)
            )
        )
        yield from self._picture("page")
        yield lambda: not state.page.busy
        tell(e.Take(state.page.batch[1]))

        state.compare.prompt, state.compare.seed = "Shall I compare thee", SEED
        yield from self._shown("Compare")
        tell(e.Do("compare"))
        yield lambda: state.compare.running is None
        yield from self._picture("compare")

        first, *_ = state.page.tree.nodes
        tell(e.Prefer("theme", "light"))
        tell(e.GoTo(first))
        end = len(state.page.document.text)
        tell(e.Edit(end, end, OWN, "pasted"))
        for seed in range(2, 5):
            yield from self._written("generate" if seed == 2 else "regenerate", 40, seed)
        yield from self._shown("Tree")
        yield from self._shown("Page")
        yield lambda: not state.page.counting and state.page.counted == state.page.document.version
        yield from self._picture("light")

    def _written(self, what: e.WriteWord, tokens: int, seed: int) -> Iterator[float | Callable[[], bool]]:
        self.state.preferences.sampling = {"seed": seed, "max_new_tokens": tokens}
        count = self.state.ledgers.count
        self.window.app.tell(e.Do(what))
        yield lambda: self.state.ledgers.count > count and not self.state.page.busy

    def _shown(self, panel: str) -> Iterator[float | Callable[[], bool]]:
        """Bring a panel to the front."""
        imgui.set_window_focus(panel)
        self._touch()
        yield lambda: not imgui.internal.find_window_by_name(panel).hidden

    def _touch(self) -> None:
        """Have a frame drawn as after a key."""
        self.window.backend.touch()
        self.window.wake()

    def _picture(self, name: str) -> Iterator[float | Callable[[], bool]]:
        """Have a frame taken, once no notice of what went before lies over the page."""
        yield lambda: not self.state.notices
        self._next_picture = name
        self._touch()
        yield lambda: not self._next_picture


def taken() -> Image.Image:
    """Return what the window shows."""
    width, height = map(int, GL.glGetIntegerv(GL.GL_VIEWPORT)[2:])
    GL.glPixelStorei(GL.GL_PACK_ALIGNMENT, 1)
    data = GL.glReadPixels(0, 0, width, height, GL.GL_RGB, GL.GL_UNSIGNED_BYTE)
    return Image.frombytes("RGB", (width, height), data).transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def save(path: Path) -> None:
    """Write what the window shows."""
    picture = taken()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    print(f"wrote {path}, {path.stat().st_size >> 10} KB")
