"""Part of update.apply for the continuations of the page: how they are written into it, kept, and shown again."""

from __future__ import annotations

from typing import assert_never

from client.window import events as e
from client.window.document import Sheet, clean
from client.window.marks import Span, Written
from client.window.results import Entry
from client.window.state import AppState
from client.window.tree import MAX_KEPT, Node
from client.window.update import notices
from client.window.writing import Generating

SENT_BYTES = 100_000
"""Most bytes before the cursor that are sent: far more than any context holds, and far less than a request may have."""


def apply(state: AppState, message: e.TreeAction) -> None:
    tree, document = state.page.tree, state.page.document
    match message:
        case e.GoTo(node):
            go(state, node)
            state.focus_page = 1  # whoever has gone there writes on there
        case e.Take(node):
            take(state, node)
            state.focus_page = 1
        case e.NameNode(node, name):
            if node in tree.nodes:
                tree.name(node, name)
        case e.KeepNode(node):
            if node in tree.nodes and not tree.keep(node):
                notices.inform(state, "branches", f"at most {MAX_KEPT} branches can be kept: let go of another first")
        case e.PruneNode(node):
            if tree.can_prune(node, document) and not state.page.generating:
                pruned = tree.prune(node)
                many = f"{len(pruned.nodes)} branches were" if len(pruned.nodes) > 1 else "a branch was"
                notices.inform(state, "branches", f"{many} pruned", e.Graft(pruned), "Put it back")
        case e.Graft(pruned):
            notices.drop(state, "branches")
            if not tree.graft(pruned):
                notices.inform(state, "branches", "what it belonged to is no longer there")
        case _:
            assert_never(message)


def insert(state: AppState, text: str, index: int = 0) -> None:
    """Take new text of one of the continuations that are being written; one of them is on the page.

    The first text takes the place of what was there, so that a generation that nothing comes of changes nothing.
    """
    page, going = state.page, state.page.generating
    text = clean(text)
    if going is None or not text:
        return
    if not going.nodes:
        _begin(state, going, text, index)
    elif index in going.nodes and going.nodes[index] in page.tree.nodes:
        node = going.nodes[index]
        page.tree.grow(node, text)
        if index == going.index:
            was, going.end = going.end, _write(state, going, going.end, text)
            page.document.mark(was, going.end, node)


def _begin(state: AppState, going: Generating, text: str, index: int) -> None:
    document, tree = state.page.document, state.page.tree
    tree.settle(document)
    earlier = document.mark_at(going.start) if going.until > going.start else None
    going.instead = earlier.node if earlier and earlier.start == going.start else 0
    going.end = _write(state, going, max(going.until, going.start), text)
    going.until = 0  # what was there has gone
    document.mark(going.start, going.end)  # a take that they were written into ends before them
    tree.settle(document, (going.start, going.end))
    node = tree.add(document, going.start, going.end, "token" if going.begins else "generated")
    going.index, going.nodes = index, {i: tree.beside(node.id).id for i in range(len(going.spaces)) if i != index}
    going.nodes[index] = node.id
    if len(going.nodes) > 1:
        state.page.batch = [going.nodes[i] for i in sorted(going.nodes)]


def _write(state: AppState, going: Generating, end: int, text: str) -> int:
    """Put text where the generation is, instead of what is there up to `end`; return where it ends."""
    document, caret = state.page.document, state.page.document.cursor
    selected = (caret, document.anchor) if caret != document.anchor else ()
    at = document.edit(going.end, end, text, _kind(going))
    if not selected and going.end < end and going.start <= caret <= end:
        document.select(at)
    elif going.end in selected:  # a selection that ends where it is written does not grow with it
        now = (document.cursor, document.anchor)
        document.select(*(going.end if was == going.end else new for was, new in zip(selected, now, strict=True)))
    return at


def _kind(going: Generating) -> str:
    """Return the kind of edit that a generation is: all of it is undone at once."""
    return f"generated {going.number}"


def length(state: AppState, index: int) -> int:
    """Return how many characters were written of one of the continuations."""
    going = state.page.generating
    node = state.page.tree.nodes.get(going.nodes.get(index, 0)) if going else None
    return len(node.text) if node else 0


def finished(state: AppState, going: Generating, entry: Entry) -> None:
    """A generation is complete, and is this entry of the history."""
    for node in going.nodes.values():
        if node in state.page.tree.nodes:
            state.page.tree.nodes[node].entry = entry.number


def ended(state: AppState, error: str) -> None:
    """Nothing more is written; a continuation that nothing came of is none."""
    page, going = state.page, state.page.generating
    for node in going.nodes.values() if going else []:
        if node in page.tree.nodes and not page.tree.nodes[node].text:
            page.tree.remove(node)
    page.generating = None
    if error:
        notices.warn(state, "page", error)
    elif going and going.stopping and going.nodes and going.instead in page.tree.nodes:
        told = "what was written until you stopped it is a branch, and so is the earlier text"
        notices.inform(state, "page", told, e.Take(going.instead), "Bring the earlier text back")
    page.changed_at = state.now
    page.uncount()


def flip(state: AppState, step: int) -> None:
    """Show another take of the place at the cursor."""
    page = state.page
    if page.generating:
        return
    page.tree.settle(page.document)
    span = page.document.mark_at(page.document.cursor)
    if span is None or span.node not in page.tree.nodes:
        return
    takes = page.tree.siblings(span.node)
    at = takes.index(page.tree.nodes[span.node])
    if len(takes) > 1:
        _show(state, span, takes[(at + step) % len(takes)])


def take(state: AppState, node: int) -> None:
    """Show one of the takes of a place that is on the page, also while it is being written."""
    page, going = state.page, state.page.generating
    taken = page.tree.nodes.get(node)
    if taken is None or (going and node not in going.nodes.values()):
        return
    page.batch = []
    if going:
        going.index = next(index for index, other in going.nodes.items() if other == node)
        going.end = page.document.show(going.start, going.end, taken.passage, node, _kind(going))
        page.document.select(going.end)
        page.move_cursor = True
        return
    page.tree.settle(page.document)
    spans = (span for span in page.document.spans if span.node in page.tree.nodes)
    span = next((span for span in spans if page.tree.nodes[span.node].place == taken.place), None)
    if span:
        _show(state, span, taken)
    else:
        go(state, node)


def _show(state: AppState, span: Span, node: Node) -> None:
    page = state.page
    page.document.select(page.document.show(span.start, span.end, node.passage, node.id, "flipped"))
    page.move_cursor, page.changed_at = True, state.now
    page.uncount()
    page.last = span.start


def go(state: AppState, node: int) -> None:
    """Show the page as it was last with a take; 0: without any."""
    page = state.page
    if page.generating or (node and node not in page.tree.nodes):
        return
    page.tree.settle(page.document)
    if node not in page.tree.nodes and node:  # it was the oldest, and there are too many
        return
    sheet = page.tree.page(node)
    page.document.become(sheet)
    page.move_cursor, page.changed_at = True, state.now
    page.uncount()
    page.last = sheet.cursor - (len(page.tree.nodes[node].text) if node else 0)


def restore(state: AppState, number: int) -> None:
    """Put a generation of the history back, its prompt and its text, in one step of undo."""
    entry, page = state.history.entry(number), state.page
    if entry is None or page.generating:
        return
    document = page.document
    prompt, text = clean(entry.prompt), clean(entry.result.text)
    page.tree.settle(document)
    start, end = len(prompt), len(prompt) + len(text)
    document.become(Sheet(prompt + text, Written(), end))
    page.tree.add(document, start, end, "restored").entry = number
    page.move_cursor, page.changed_at = True, state.now
    page.uncount()
    page.last = start


def shifted(going: Generating, sticky: dict[str, int]) -> None:
    """Take over where the generation is after an edit elsewhere."""
    going.start, going.end = sticky.pop("begun"), sticky.pop("written")
    going.until = sticky.pop("until")
