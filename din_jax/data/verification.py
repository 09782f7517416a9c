"""Verifies that a store is what was written, once, and remembers that it was.

`schema.json` has the size and the CRC-32 of every file, and a checksum of itself. Stores of version
0.2.0 and older have neither, but a fingerprint, a digest of all columns and vocabularies: it is
computed again. What the columns hold is checked in both (`din_jax.data.store_checks`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from din_jax.data.columns import ColumnFile, column_names
from din_jax.data.files import checksum, json_checksum, replace_file
from din_jax.data.fingerprint import fingerprint, vocabulary_digest
from din_jax.data.schema import Schema
from din_jax.data.store_checks import StoreChecks
from din_jax.errors import DinError

Verify = Literal["once", "full", "none"]
VERIFY: tuple[Verify, ...] = ("once", "full", "none")
MEND = "copy the store again from where it is whole, or prepare it again"
_MEMORY = "verified.json"
_CHECKS = 1  # what verification checks; a later number does not trust what an earlier one remembers
_THREADS = 4
RECENT_NS = 2_000_000_000  # a change within one tick of the file system's clock leaves no trace
_LARGE = 1 << 30  # bytes; reading more takes so long that it is announced
_SHOWN = 5  # damages in a message


def check_store(folder: Path, description: Mapping[str, Any], schema: Schema, how: Verify) -> None:
    """Raises `DinError` if a store is damaged.

    Args:
      folder: the store.
      description, schema: the content of its `schema.json`.
      how: "once": unless it was verified before and no file has changed since, by sizes and times;
        "full": in any case; "none": not at all.
    """
    if how not in VERIFY:
        raise DinError(f"verify={how!r}: expected {' or '.join(map(repr, VERIFY))}")
    if how == "none":
        return
    files = ["schema.json", *_files(description, schema)]
    begun = time.time_ns()
    stamps = _stamps(folder, files)
    if how == "once" and stamps and stamps == _remembered(folder):
        return
    total = sum(size for size, *_ in stamps.values())
    if total > _LARGE:
        print(f"verifying {folder}, {total / 1e9:.1f} GB", file=sys.stderr, flush=True)
    found = damages(folder, description, schema)
    if found:
        raise DinError(
            f"{folder} is damaged:\n  "
            + "\n  ".join(found[:_SHOWN])
            + f"\n  … and {len(found) - _SHOWN} more" * (len(found) > _SHOWN)
            + f"\n{MEND}"
        )
    if "files" not in description:
        print(
            f"{folder} was made by an older version of din_jax and has no checksums of its files; "
            "its content is that of its fingerprint",
            file=sys.stderr,
        )
    if max(changed for *_, changed in stamps.values()) < begun - RECENT_NS:
        _remember(folder, stamps)


def damages(folder: Path, description: Mapping[str, Any], schema: Schema) -> list[str]:
    """What is wrong with a store, a line each: the file, what was found and what was expected."""
    if "files" in description:
        found = _damaged_files(folder, description["files"], _files(description, schema))
        return found or _damaged_content(folder, description, schema)
    return _damaged_content(folder, description, schema) or _other_fingerprint(
        folder, description, schema
    )


def check_description(file: Path, description: Mapping[str, Any]) -> None:
    """Raises `DinError` if the content of `schema.json` has another checksum than it says."""
    if not {"files", "checksum"} & description.keys():  # of an older version
        return
    found = json_checksum(description)
    if description.get("checksum") != found:
        raise DinError(
            f"{file} is damaged: its checksum is {found}, and it says "
            f"{description.get('checksum')}; {MEND}"
        )


def _files(description: Mapping[str, Any], schema: Schema) -> list[str]:
    """The files of a store beside `schema.json`: those of its schema, and others that it lists.

    Raises:
      DinError: one that it lists is outside of the store.
    """
    needed = [f"{name}.npy" for name in column_names(schema)]
    needed += [f"vocab/{table.name}.parquet" for table in schema.tables]
    listed = description.get("files", {})
    for name in map(Path, listed):
        if name.is_absolute() or ".." in name.parts:
            raise DinError(f"schema.json lists {name}, which is outside of the store; {MEND}")
    return [*dict.fromkeys([*needed, *listed])]


def _damaged_files(folder: Path, expected: Mapping[str, Any], files: Iterable[str]) -> list[str]:
    def damage(name: str) -> Iterator[str]:
        file = folder / name
        if name not in expected:
            yield f"{file}: schema.json has no checksum of it"
            return
        size, crc = expected[name]
        try:
            found = file.stat().st_size
            if found != size:
                yield f"{file}: {found:,} bytes, expected {size:,}"
            elif checksum(file) != [size, crc]:
                yield f"{file}: its content has changed (another checksum)"
        except FileNotFoundError:
            yield f"{file}: missing"
        except OSError as error:
            yield f"{file}: can't be read ({error.strerror})"

    return [line for lines in _in_threads(lambda name: list(damage(name)), files) for line in lines]


def _damaged_content(folder: Path, description: Mapping[str, Any], schema: Schema) -> list[str]:
    try:
        columns = {name: ColumnFile.open(folder / f"{name}.npy") for name in column_names(schema)}
        StoreChecks(schema, columns, description["splits"]).check()
    except DinError as error:
        return [str(error).replace("store: ", f"{folder}: ", 1)]
    except Exception as error:  # whatever a strange schema.json leads to
        return [f"{folder}/schema.json does not describe a store ({type(error).__name__}: {error})"]
    return []


def _other_fingerprint(folder: Path, description: Mapping[str, Any], schema: Schema) -> list[str]:
    def digest(name: str) -> str:
        sha = hashlib.sha256()
        for chunk in ColumnFile.open(folder / f"{name}.npy").chunks():
            sha.update(chunk.tobytes())
        return sha.hexdigest()

    names = list(column_names(schema))
    digests = dict(zip(names, _in_threads(digest, names), strict=True))
    for table in schema.tables:
        import polars as pl

        path = folder / "vocab" / f"{table.name}.parquet"
        try:
            frame = pl.read_parquet(path)[1:]
            digests[f"vocab/{table.name}"] = vocabulary_digest(
                frame["id"], frame["count"].to_numpy()
            )
        except Exception as error:  # a damaged file raises those of several modules
            return [f"{path}: missing or damaged ({str(error).splitlines()[0][:200]})"]
    found = fingerprint(description, digests)
    if found != description["fingerprint"]:
        return [
            f"{folder}: its content has changed: the fingerprint is {found}, and schema.json says "
            f"{description['fingerprint']}"
        ]
    return []


def _in_threads(work: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    """Reading waits for the disk, and checksums run without the interpreter's lock."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(work, names))


def _stamps(folder: Path, files: Iterable[str]) -> dict[str, list[int]]:
    """What changes with a file: [bytes, inode, times of change in ns]; {} if one is missing."""
    stamps = {}
    for name in files:
        try:
            stat = (folder / name).stat()
        except OSError:
            return {}
        stamps[name] = [
            stat.st_size,
            stat.st_ino,
            stat.st_mtime_ns,
            max(stat.st_mtime_ns, stat.st_ctime_ns),
        ]
    return stamps


def _remembered(folder: Path) -> dict[str, list[int]] | None:
    """The stamps of the files that were verified, or None."""
    try:
        memory = json.loads((folder / _MEMORY).read_text())
        if memory["checks"] == _CHECKS:
            return memory["stamps"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _remember(folder: Path, stamps: Mapping[str, list[int]]) -> None:
    text = json.dumps({"checks": _CHECKS, "stamps": stamps})
    with contextlib.suppress(OSError):  # a store that can't be written to is verified each time
        replace_file(folder / _MEMORY, text)
