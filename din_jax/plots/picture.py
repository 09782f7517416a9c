"""What all figures share: a figure with its caption, its colours, and its files."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Okabe & Ito 2008: eight colours that people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILION, SKY, YELLOW, BLACK = "#D55E00", "#56B4E9", "#F0E442", "#000000"
GREY = "#9a9a9a"
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
LINES = ("-", "--", "-.", ":")  # beside colours, for more runs than colours and for print

_SVG_METADATA = ("Creator", "Date", "Format", "Type")  # what Matplotlib writes of itself
_STYLE: dict[str, Any] = {
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "savefig.dpi": 110,
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "din_jax",  # equal figures are equal files
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure, and words that say what is seen in it.

    Attributes:
      name: of its files.
      title: a few words.
      figure: without title and caption.
      caption: sentences: what is drawn, of which data, and what it shows.
      data: the numbers that are drawn, by name.
    """

    name: str
    title: str
    figure: Figure
    caption: str
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes FOLDER/NAME.png and NAME.svg, with title and caption; returns their paths.

        A file of this name is replaced, when the new one is complete.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        with style():
            self.figure.suptitle(self.title, fontsize=11, fontweight="bold", x=0.01, ha="left")
            width = int(self.figure.get_figwidth() * 16)
            self.figure.supxlabel(
                textwrap.fill(self.caption, width), fontsize=8, x=0.01, ha="left", color="#333333"
            )
            for kind in ("png", "svg"):
                path = folder / f"{self.name}.{kind}"
                partial = folder / f".{self.name}.{kind}.partial-{os.getpid()}"
                partial.write_bytes(self._encoded(kind))
                partial.replace(path)
                paths.append(path)
            self.figure.suptitle("")
            self.figure.supxlabel("")
        return paths

    def svg(self) -> str:
        """The figure alone, without title and caption, as an <svg> element that needs no fonts."""
        with style(), matplotlib.rc_context({"svg.fonttype": "path"}):
            text = self._encoded("svg", described=False).decode()
        return text[text.index("<svg") :]

    def _encoded(self, kind: str, *, described: bool = True) -> bytes:
        file = io.BytesIO()
        metadata: dict[str, str | None] = {}
        if described:
            metadata = {"Title": self.title, "Description": self.caption}
        if kind == "svg":
            metadata |= {"Date": None} if described else dict.fromkeys(_SVG_METADATA)
        self.figure.savefig(file, format=kind, metadata=metadata)
        return file.getvalue()


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of all figures, within the `with` block."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 3.6), **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes [rows, columns]; size in inches. Call it within `style()`."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes
