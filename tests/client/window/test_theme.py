"""Whatever is written can be read, in both themes: the contrasts are computed from what the themes say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)

from imgui_bundle import imgui, implot

from client.window import theme
from client.window.theme import MARKS, PALETTES, Name, Palette

AT_LEAST = 4.5
PANELS = ("base", "page", "raised", "field", "field_hovered", "field_active")
BUTTONS = ("button", "button_hovered", "button_active", "chosen", "chosen_hovered", "chosen_active")
STANDS_ON = {
    "text": (*PANELS, *BUTTONS, "selection"),
    "dim": (*PANELS, "button", "chosen", "chosen_hovered"),
    "model": ("page", "selection", "base"),
    "accent": (*PANELS, "button", "chosen"),
    "good": (*PANELS, "chosen"),
    "warn": (*PANELS, "chosen"),
    "bad": (*PANELS, "chosen"),
    "on_accent": ("accent", "accent_hovered", "accent_active"),
}
"""Ink -> surfaces on which it is written."""
LINES = {"border", "line", "grab"}


def luminance(red: float, green: float, blue: float) -> float:
    """As WCAG 2 defines it."""
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue))
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    low, high = sorted((luminance(*one), luminance(*other)))
    return (high + 0.05) / (low + 0.05)


def rgb(colour: str) -> tuple[float, float, float]:
    made = theme.rgba(colour)
    return made.x, made.y, made.z


def test_contrast_is_computed_as_the_standard_does() -> None:
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#767676"), rgb("#ffffff")) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("name", PALETTES)
def test_every_ink_can_be_read_on_every_surface(name: Name) -> None:
    palette = PALETTES[name]
    surfaces = {surface for on in STANDS_ON.values() for surface in on}
    assert {f.name for f in fields(Palette)} == set(STANDS_ON) | surfaces | LINES, "a colour that is not judged"
    low = {
        (ink, surface): round(contrast(rgb(getattr(palette, ink)), rgb(getattr(palette, surface))), 2)
        for ink, on in STANDS_ON.items()
        for surface in on
    }
    assert not {pair: value for pair, value in low.items() if value < AT_LEAST}


@pytest.mark.parametrize("name", PALETTES)
def test_borders_show(name: Name) -> None:
    palette = PALETTES[name]
    for surface in ("base", "page", "raised", "field"):
        assert contrast(rgb(palette.border), rgb(getattr(palette, surface))) > 1.5, surface


@pytest.fixture
def context() -> Iterator[None]:
    imgui.create_context()
    implot.create_context()
    yield
    implot.destroy_context()
    imgui.destroy_context()


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("name", PALETTES)
def test_dear_imgui_gets_opaque_surfaces_and_a_dim_that_darkens(name: Name) -> None:
    theme.apply(name, 2.0, 16.0)
    style, c = imgui.get_style(), imgui.Col_
    assert theme.palette() is PALETTES[name]
    for surface in (c.popup_bg, c.window_bg, c.frame_bg, c.menu_bar_bg, c.title_bg_active):
        assert style.color_(surface).w == 1.0
    dim = style.color_(c.modal_window_dim_bg)
    assert (dim.x, dim.y, dim.z) == (0, 0, 0) and dim.w >= 0.4
    assert style.popup_border_size >= 1 and style.frame_border_size >= 1 and style.color_(c.border).w == 1.0
    # What is disabled is paler, and can be read all the same.
    text, back = style.color_(c.text), style.color_(c.window_bg)
    share = style.disabled_alpha
    pale = [ink * share + under * (1 - share) for ink, under in ((text.x, back.x), (text.y, back.y), (text.z, back.z))]
    assert contrast((pale[0], pale[1], pale[2]), (back.x, back.y, back.z)) >= AT_LEAST


@pytest.mark.usefixtures("context")
def test_another_scale_starts_from_the_same_sizes() -> None:
    theme.apply("dark", 1.0, 16.0)
    first = imgui.get_style().frame_padding.x, imgui.get_style().scrollbar_size
    theme.apply("light", 2.0, 16.0)
    assert imgui.get_style().frame_padding.x == 2 * first[0]
    theme.apply("dark", 1.0, 16.0)
    assert (imgui.get_style().frame_padding.x, imgui.get_style().scrollbar_size) == first


@pytest.mark.parametrize("name", PALETTES)
def test_words_on_a_mark_can_be_read(name: Name) -> None:
    palette, low = PALETTES[name], {}
    for mark, (colour, alpha) in MARKS.items():
        for surface, inks in (("page", ("text", "model")), ("base", ("text",))):
            pairs = zip(rgb(getattr(palette, colour)), rgb(getattr(palette, surface)), strict=True)
            mixed = [over * alpha + under * (1 - alpha) for over, under in pairs]
            for ink in inks:
                low[mark, surface, ink] = contrast((mixed[0], mixed[1], mixed[2]), rgb(getattr(palette, ink)))
    assert not {which: round(value, 2) for which, value in low.items() if value < AT_LEAST}
