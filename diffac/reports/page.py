"""Writes the page of a report: HTML that needs no other file."""

from __future__ import annotations

import html
import string
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from diffac.messages import printable
from diffac.reports.pictures import NOTHING, colour_variables

LONG = 40
"""Characters of a cell that stay on one line in any column."""


class Value(NamedTuple):
    """A cell of a table."""

    text: str
    sort: float | str | None = None
    """What the column is sorted by; None: the text."""
    small: str = ""
    """A second, smaller line."""
    colour: str = ""
    """Of a dot before the text."""


class Column(NamedTuple):
    """The head of a column."""

    title: str
    is_text: bool = False
    wide: bool = False
    """Long text that may be broken into lines."""


class Picture(NamedTuple):
    """A picture of the page."""

    name: str
    """Of its files."""
    svg: str
    description: str
    """For people who do not see it."""


class Section(NamedTuple):
    """A part of the page."""

    title: str
    body: str


def page(title: str, lead: str, care: Sequence[str], sections: Sequence[Section], footer: str) -> str:
    """The whole page. `care` are sentences to read first; texts but for bodies and footer are plain."""
    anchors = [f"s{i}" for i in range(len(sections))]
    links = "".join(f'<a href="#{a}">{escape(s.title)}</a>' for a, s in zip(anchors, sections, strict=True))
    bodies = [
        f'<section aria-labelledby="{a}"><h2 id="{a}">{escape(s.title)}</h2>{s.body}</section>'
        for a, s in zip(anchors, sections, strict=True)
    ]
    if care:
        bodies.insert(0, f'<div class="care"><b>Read with care</b>{bullets(care)}</div>')
    variables = colour_variables()
    return string.Template(files("diffac.reports").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        lead=escape(lead),
        links=links,
        sections="\n".join(bodies),
        footer=footer,
        light=" ".join(f"--{name}: {light};" for name, light, _ in variables),
        dark=" ".join(f"--{name}: {dark};" for name, _, dark in variables),
    )


def escape(text: str) -> str:
    """Text as HTML that shows it, whatever it holds."""
    return html.escape(printable(text), quote=True)


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph."""
    return f"<p class='{kind}'>{escape(text)}</p>" if kind else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def bullets(texts: Sequence[str]) -> str:
    """Plain texts as a list."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def definitions(entries: Sequence[tuple[str, str]]) -> str:
    """Terms and what they mean."""
    return f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in entries)}</dl>"


def panels(pictures: Sequence[Picture]) -> str:
    """Pictures side by side where there is room, with links to their files."""
    return f'<div class="panels">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture) -> str:
    label = escape(picture.description)
    svg = picture.svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    links = " ".join(f'<a href="pictures/{picture.name}.{kind}">{kind.upper()}</a>' for kind in ("png", "svg"))
    return f"<figure>{svg}<figcaption>{links}</figcaption></figure>"


def table(columns: Sequence[Column], rows: Sequence[Sequence[Value | str]]) -> str:
    """A table that a click on a head sorts."""
    heads = "".join(
        f'<th scope="col"{_class("text" if c.is_text else "")}><button>{escape(c.title)}</button></th>' for c in columns
    )
    body = "".join(f"<tr>{''.join(map(_cell, columns, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(column: Column, value: Value | str) -> str:
    if isinstance(value, str):
        value = Value(value)
    wide = column.wide or len(value.text) > LONG
    kind = " ".join(name for name, given in (("text", column.is_text), ("wide", wide)) if given)
    sort = "" if value.text == NOTHING else value.sort
    data = "" if sort is None else f' data-value="{escape(str(sort))}"'
    dot = f'<span class="dot" style="background:{value.colour}"></span>' if value.colour else ""
    small = f"<small>{escape(value.small)}</small>" if value.small else ""
    return f"<td{_class(kind)}{data}>{dot}{escape(value.text)}{small}</td>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
