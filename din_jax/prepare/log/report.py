"""Formats the origin of a prepared log for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from din_jax.data.store import SPLITS


def report(origin: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the report."""
    for section, counts in origin["rows"].items():
        yield _line(f"[{section}] rows", ", ".join(f"{what} {n:,}" for what, n in counts.items()))
    for section, rates in origin["found"].items():
        text = ", ".join(f"{what} {rate:.2%}" for what, rate in rates.items())
        yield _line(f"[{section}] ids found of", text)
    for split, samples in origin["samples"].items():
        rate = origin["label rate"][split]
        text = "no labels" if rate is None else f"label rate {rate:.4f}"
        if samples:
            yield _line(f"{split} samples", f"{samples:,}, {text}")
    for name, counts in origin["tables"].items():
        yield _line(
            f"table {name}",
            ", ".join(
                f"{what} {n:,}" if isinstance(n, int) else f"{what} {n}"
                for what, n in counts.items()
            ),
        )
    yield _line("unknown ids of", "  ".join(f"{split:>10}" for split in SPLITS))
    for name, rates in origin["unknown"].items():
        texts = ("none" if rate is None else f"{rate:.2%}" for rate in rates.values())
        yield _line(f"  {name}", "  ".join(f"{text:>10}" for text in texts))
    for name, lengths in origin["histories"].items():
        for split, length in lengths.items():
            yield _line(
                f"{name} of {split}",
                f"mean length {length['mean']:,.1f}, longest {length['longest']:,}, "
                f"empty {length['empty']:.1%}",
            )
    for name, text in origin["own history"].items():
        yield _line(f"ad in its own {name}", text)
    if "negatives" in origin:
        text = ", ".join(f"{what} {value}" for what, value in origin["negatives"].items())
        yield _line("negatives", text)
    for note in origin["notes"]:
        yield _line("note", note)


def _line(label: str, text: str) -> str:
    return f"{label:<28}{text}"
