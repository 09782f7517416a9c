"""Finds the files of one of the user's tables, and tells their format."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Literal, NamedTuple

from din_jax.errors import DinError
from din_jax.prepare.log.csv_blocks import Dialect
from din_jax.prepare.log.file_text import open_bytes, read_errors
from din_jax.prepare.log.spec import TableFiles

Format = Literal["csv", "parquet", "feather", "json"]
_SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
    ".ipc": "feather",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
_COMPRESSED = (".gz", ".zst")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"  # how Hive writes null in a folder's name


class File(NamedTuple):
    """A file of a table.

    Attributes:
      path: of the file.
      format: how it is written.
      dialect: of a CSV.
      partition: {column: value} of folders named column=value.
    """

    path: Path
    format: Format
    dialect: Dialect
    partition: dict[str, str | None]


def find(files: TableFiles) -> list[File]:
    """The files of a table, in the order of the spec's paths, folders and patterns sorted.

    A file that two paths name is there once.

    Raises:
      DinError: there is no file, or a file's format can't be told.
    """
    found: list[File] = []
    for path in files.paths:
        if path.is_dir():
            inside = _in_folder(files, path)
        elif path.is_file():
            inside = [_file(files, path, path.parent)]
        else:
            pattern = any(c in path.name for c in "*?[") and path.parent.is_dir()
            matching = sorted(p for p in path.parent.glob(path.name)) if pattern else []
            inside = [_file(files, p, path.parent) for p in matching if p.is_file()]
            if not inside:
                what = "no file is named so" if pattern else "no such file or folder"
                raise DinError(
                    f"{path}: {what}; expected the table [{files.section}]. Paths of a spec start "
                    "from its own folder, or from --data (in predict: --tables)"
                )
        found += inside
    return list({file.path: file for file in found}.values())  # each once


def _in_folder(files: TableFiles, folder: Path) -> list[File]:
    """The files of a folder, without those that writers of partitioned tables leave there."""
    visible = (
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )
    known = files.delimiter is not None  # then every file is a CSV
    found = [
        _file(files, path, folder)
        for path in visible
        if path.is_file() and (known or _by_suffix(path) is not None)
    ]
    if not found:
        raise DinError(
            f"{folder}: no file in this folder ends with {' or '.join(_SUFFIXES)}, perhaps "
            "followed "
            f"by {' or '.join(_COMPRESSED)}; expected the table [{files.section}]. If its files "
            "are CSV by other names, name their delimiter"
        )
    formats = {file.format for file in found}
    if len(formats) > 1:
        raise DinError(
            f"{folder}: expected the table [{files.section}] in files of one format, found "
            f'{" and ".join(sorted(formats))}; name the files in path = ["…", "…"], or a pattern '
            'such as "*.csv"'
        )
    return found


def _file(files: TableFiles, path: Path, root: Path) -> File:
    keys = [part.partition("=") for part in path.relative_to(root).parent.parts if "=" in part]
    partition = {k: None if v == _HIVE_NULL else urllib.parse.unquote(v) for k, _, v in keys}
    form = "csv" if files.delimiter is not None else _by_suffix(path) or _by_content(path)
    tabs = _plain_suffix(path) == ".tsv"
    dialect = Dialect(
        delimiter=files.delimiter or ("\t" if tabs else ","),
        quote=files.quote,
        escape=files.escape,
        encoding=files.encoding,
        columns=files.header,
    )
    return File(path, form, dialect, partition)


def _plain_suffix(path: Path) -> str:
    name = path.name.lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return Path(name).suffix


def _by_suffix(path: Path) -> Format | None:
    return _SUFFIXES.get(_plain_suffix(path))


def _by_content(path: Path) -> Format:
    """The format of a file whose name does not tell it."""
    try:
        with path.open("rb") as raw:
            magic = raw.read(6)
        if magic[:4] == b"PAR1":
            return "parquet"
        if magic == b"ARROW1":
            return "feather"
        with open_bytes(path) as file:
            begin = file.read(6)
    except DinError:
        raise
    except Exception as error:
        raise read_errors(path, error) from error
    return "json" if begin[:1] in (b"{", b"[") else "csv"
