"""HTML that escapes by default: text is text unless it was built here."""

from collections.abc import Iterable
from typing import TypeAlias

Child: TypeAlias = "Markup | str | int | float | None | Iterable[Child]"

VOID = frozenset({"br", "hr", "img", "input", "meta"})


class Markup(str):
    """A string that is already HTML. Only `tag`, `join` and literals make it."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """`text` with every character that HTML gives a meaning to replaced."""
    return Markup(
        str(text)
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
        .replace("'", "&#39;")
    )


def join(children: "Child") -> Markup:
    """Concatenates children; what is not `Markup` is escaped, None vanishes."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str | int | float):
        return escape(children)
    return Markup("".join(join(child) for child in children))


def tag(
    name: str, /, *children: "Child", **attributes: str | int | float | None
) -> Markup:
    """One element.

    Args:
      name: the element's name.
      *children: markup, text (escaped) or nested lists of them.
      **attributes: attribute values (escaped); None leaves one out. A trailing `_`
        is dropped (`class_`) and the other `_` become `-` (`stroke_width`).
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{pairs}>")
    return Markup(f"<{name}{pairs}>{join(children)}</{name}>")


def document(*, title: str, css: str, script: str, body: Markup) -> str:
    """A whole page that loads nothing: style and script are inline.

    Args:
      title: shown in the browser's tab.
      css: a trusted stylesheet of this package.
      script: a trusted script of this package.
      body: the page.
    """
    # The policy makes "no external requests" the browser's promise as well as ours.
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src data:; media-src data:"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Markup(f"<style>{css}</style>"),
    )
    page = tag("body", body, Markup(f"<script>{script}</script>"))
    return f'<!doctype html>\n<html lang="en">{head}{page}</html>\n'
