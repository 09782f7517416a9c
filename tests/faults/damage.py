"""Seeded damage to the files of a folder, and what reads them afterwards."""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

KINDS = ("flip", "cut", "delete", "zero", "swap")


class Damage(NamedTuple):
    kind: str
    file: str  # relative to the folder

    def __str__(self):
        return f"{self.kind} {self.file}"


def damaged(folder: Path, names: list[str], rng: np.random.Generator) -> Damage:
    """Damages one of the files of a folder; names those that may be."""
    name = names[rng.integers(len(names))]
    kind = KINDS[rng.integers(len(KINDS))]
    file = folder / name
    content = bytearray(file.read_bytes())
    if kind == "flip" and content:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
    elif kind == "cut" and content:
        file.write_bytes(content[: rng.integers(len(content))])
    elif kind == "zero" and content:
        begin = int(rng.integers(len(content)))
        content[begin : begin + 64] = bytes(len(content[begin : begin + 64]))
        file.write_bytes(content)
    elif kind == "swap":
        other = folder / names[rng.integers(len(names))]
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
        name = f"{name} and {other.relative_to(folder)}"
    else:
        file.unlink()
    return Damage(kind, name)


def files_of(folder: Path) -> list[str]:
    """All files of a folder, in order."""
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def restore(whole: Path, folder: Path) -> None:
    """Makes a folder what it was, whatever was damaged, written or moved in it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
