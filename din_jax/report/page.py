"""A page of tables, figures and text as one HTML file that needs no other file."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from din_jax.errors import DinError


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, whose first column names the rows.

    Attributes:
      caption: what it lists.
      headings: of the columns.
      rows: cells as text; those that are numbers are aligned to the right.
      folded: whether it is shown only when asked for.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    kind: str = "table"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure: an <svg> element, its title, and its caption."""

    svg: str
    title: str
    caption: str
    kind: str = "figure"

    @property
    def source(self) -> str:
        """The figure as the address of an image, which holds it whole."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Text | Table | Figure]

    @property
    def anchor(self) -> str:
        """The section's name in links."""
        return "-".join(self.title.lower().split())


def render(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The HTML of a page: works offline, in light and dark, on paper and on a phone.

    Raises:
      DinError: Jinja is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise DinError(
            "the report needs Jinja, which is not installed: pip install 'din_jax[plots]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["is_number"] = _is_number
    template = environment.from_string((Path(__file__).parent / "page.html").read_text())
    return template.render(title=title, summary=summary, sections=[s for s in sections if s.blocks])


def write(path: str | os.PathLike[str], html: str) -> None:
    """Writes a page; a file that is there is replaced when the new one is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(html)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_number(cell: Any) -> bool:
    """Whether a cell begins like a number, or is empty."""
    text = str(cell).lstrip("+−-~")
    return not text or text[0].isdigit() or text == "nan"
