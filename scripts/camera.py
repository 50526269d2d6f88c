"""The real window, driven through what the README's film shows; it keeps each frame with its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from imgui_bundle import imgui
from PIL import Image

from client.window import events as e
from scripts.bench.window import Driven
from scripts.photographer import taken

BEGINNING = "VIOLA.\nShall I compare thee to a winter's night?\n"
SEED = 7
KEY_S = 0.045
"""Seconds from key to key."""
SLOWED = 8
"""How many times as long as in the program a frame is shown while the model writes."""
ASIDE = (70.0, 300.0)
"""Where the mouse is when it has nothing to do."""
SHORTEST_MS, LONGEST_MS = 40, 1_600
COLOURS = 64
LIMIT_BYTES = 3_000_000


class Camera(Driven):
    """A window that goes through what the film shows, and the frames that it drew."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, "demo")
        self._frames = list[tuple[float, bool, Image.Image]]()
        """When each was drawn, whether the model was writing, and what it shows."""
        self._last: Image.Image | None = None
        self._rolling = False
        self.forced = True
        render = self.window.backend.render

        def rendered(draw_data: imgui.ImDrawData) -> None:
            render(draw_data)
            if self._rolling and (frame := taken()) != self._last:
                self._frames.append((time.monotonic(), self.state.page.busy, frame))
                self._last = frame

        self.window.backend.render = rendered  # type: ignore[method-assign]

    def steps(self) -> Iterator[float | Callable[[], bool]]:
        state, tell = self.state, self.window.app.tell
        yield lambda: state.link.status == "ready" and bool(state.models.known)
        tell(e.Choose("demo", "native", "int8"))
        imgui.get_io().mouse_draw_cursor = True
        self._point(*ASIDE)
        yield lambda: not state.notices
        self._rolling = True
        for place, letter in enumerate(BEGINNING):
            tell(e.Edit(place, place, letter, "typed"))
            yield KEY_S
        yield 0.4

        yield from self._written("generate", 90)
        yield 1.2

        yield from self._written("branches", 160)
        yield 1.5
        tell(e.Take(state.page.batch[2]))
        yield 1.2

        yield from self._another_word()
        yield 2.5

    def _written(self, what: e.WriteWord, tokens: int) -> Iterator[float | Callable[[], bool]]:
        """Have the model write, until all is on the screen."""
        self.state.preferences.sampling = {"seed": SEED, "max_new_tokens": tokens, "min_new_tokens": tokens}
        count = self.state.ledgers.count
        self.window.app.tell(e.Do(what))
        yield lambda: self.state.ledgers.count > count and not self.state.page.busy

    def _another_word(self) -> Iterator[float | Callable[[], bool]]:
        """Rest the mouse on a word that could have been another one, and take the likeliest other."""
        state = self.state
        start = state.page.document.cursor - 1
        tokens = state.tokens_at(start)
        assert tokens
        first = state.page.view.sight[0]
        index = next(
            number
            for number, token in enumerate(tokens.written.tokens)
            if tokens.places[number] > first
            and token.text[:1] == " "
            and token.text[1:].isalpha()
            and len(token.text) > 4
        )
        x, y = state.page.view.place(tokens.places[index] + 2)
        self._point(x, y + state.page.view.line / 2)
        yield lambda: state.hovered is not None and state.hovered.opened
        yield 1.6
        chosen = tokens.written.tokens[index]
        other = next(one for one in chosen.top if one.id != tokens.written.ids[index])
        count = state.ledgers.count
        self.window.app.tell(e.TakeToken(tokens.start, index, other.id))
        self._point(*ASIDE)
        yield lambda: state.ledgers.count > count and not state.page.busy

    def _point(self, x: float, y: float) -> None:
        """Move the mouse; no pointer of the screen is moved, which may be elsewhere."""
        self.window.backend.mouse_callback(self.window.window, x, y)

    def save(self, path: Path) -> None:
        """Write the film."""
        ends = [when for when, _, _ in self._frames[1:]] + [self._frames[-1][0] + LONGEST_MS / 1000]
        shown, durations = list[Image.Image](), list[int]()
        for (began, writing, frame), end in zip(self._frames, ends, strict=True):
            shown.append(frame)
            ms = round((end - began) * (SLOWED if writing else 1) * 1000)
            durations.append(min(LONGEST_MS, max(SHORTEST_MS, ms)))
        palette = shown[-1].quantize(COLOURS)
        pictures = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in shown]
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
        size = path.stat().st_size
        print(f"wrote {path}, {len(shown)} frames, {sum(durations) / 1000:.1f} s, {size >> 10} KB")
        if size > LIMIT_BYTES:
            raise SystemExit(f"a film has at most {LIMIT_BYTES:,} bytes")
