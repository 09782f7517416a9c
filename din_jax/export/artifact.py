"""A model on disk that scores without its run and its store.

MODEL/
  manifest.json       versions, platforms, inputs, config, metrics, checksums of all files
  scoring.bin         the function of `din_jax.export.scoring`, by `jax.export`
  weights/NAME.npy    the network's arrays
  tables/NAME.npy     the embedding tables, memory-mapped when they are read
  filters/NAME.npy    (of a frequency filter) the ids that it keeps
  transform/          vocabularies, buckets and transforms of numbers (`din_jax.data.transform`)
  titles/             (of tables that have them) display names of ids (`din_jax.data.titles`)
  probe.json          a request, and the scores that it must have
  README.md           the model card
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import polars as pl
from ml_collections import ConfigDict

from din_jax.data.files import json_checksum
from din_jax.data.schema import Schema
from din_jax.data.titles import Titles, write_titles
from din_jax.data.transform import Transform
from din_jax.errors import DinError

FORMAT = "din_jax model"
VERSION = 1
_CHUNK = 1 << 22  # bytes of a file that are read at a time
_FOLDERS = {"tables": "tables", "frequent": "filters"}  # where the arrays of the weights are


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An artifact that has been read; its arrays are memory-mapped.

    Attributes:
      path: its folder.
      manifest: see `manifest.json`.
      schema: the inputs that the model reads.
      transform: of raw values.
      weights: see `din_jax.export.scoring.scoring`.
      probe: {"request": raw values, "logits": its scores}.
      titles: {table: the display names of its ids}, which no model reads.
    """

    path: Path
    manifest: dict[str, Any]
    schema: Schema
    transform: Transform
    weights: dict[str, Any]
    probe: dict[str, Any]
    titles: dict[str, Titles]

    @property
    def name(self) -> str:
        """The first characters of the manifest's checksum: no two models share it."""
        text = json.dumps(self.manifest, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def write(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    *,
    weights: Mapping[str, Any],
    transform: Transform,
    function: bytes,
    probe: Mapping[str, Any],
    card: str,
    titles: Mapping[str, pl.Series] | None = None,
) -> None:
    """Writes an artifact to a folder that does not exist yet; it appears when it is complete.

    Args:
      titles: {table: the titles of rows 1, 2, …}, of the tables that have them.
      others: see `Artifact` and the module.
    """
    path = Path(path)
    partial = path.absolute().parent / f".{path.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        names = {}
        for name, array in _named(weights):
            file = partial / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.asarray(array))
            names[name] = list(np.shape(array))
        transform.save(partial / "transform")
        for table, of_table in (titles or {}).items():
            write_titles(partial, table, of_table)
        (partial / "scoring.bin").write_bytes(function)
        (partial / "probe.json").write_text(json.dumps(probe, indent=1))
        (partial / "README.md").write_text(card)
        files = {name: _checksum(partial / name) for name in _files(partial)}
        whole = {"format": FORMAT, "version": VERSION, **manifest, "arrays": names, "files": files}
        whole["checksum"] = json_checksum(json.loads(json.dumps(whole)))  # as it will be read
        (partial / "manifest.json").write_text(json.dumps(whole, indent=1))
        for name in [*files, "manifest.json"]:
            _sync(partial / name)
        for folder in [partial, *(d for d in partial.rglob("*") if d.is_dir())]:
            _sync(folder)
        os.rename(partial, path)
        _sync(path.absolute().parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(path: str | os.PathLike[str], *, verify: bool = True) -> Artifact:
    """Reads an artifact.

    Args:
      path: its folder.
      verify: whether to compare all files with their checksums.

    Raises:
      DinError: it is no artifact, has another version, or a file is missing or damaged.
    """
    path = Path(path)
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise KeyError("format")
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DinError(
            f"{path} is no exported model: {path / 'manifest.json'} can't be read ({error}); make "
            "one with `python -m din_jax.export`"
        ) from error
    if version != VERSION:
        raise DinError(
            f"{path} is an exported model of version {version}, this din_jax reads version "
            f"{VERSION}; export it again"
        )
    try:
        found = json_checksum(manifest)
        if manifest.get("checksum", found) != found:
            raise ValueError("manifest.json has another checksum than it says")
        files = manifest["files"]
        for file in map(Path, [*files, *manifest["arrays"]]):
            if file.is_absolute() or ".." in file.parts:
                raise ValueError(f"{file} is outside of it")
        for file, (size, checksum) in files.items():
            held = (path / file).stat().st_size
            if held != size:
                raise ValueError(f"{file} has {held:,} bytes, not {size:,}")
            if verify and _checksum(path / file) != [size, checksum]:
                raise ValueError(f"{file} has another checksum than the manifest says")
        arrays = {
            name: np.load(path / f"{name}.npy", mmap_mode="r" if np.prod(shape) else None)
            for name, shape in manifest["arrays"].items()
        }
        schema = Schema.from_json(manifest["schema"])
        probe = json.loads((path / "probe.json").read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DinError(f"{path} is damaged: {error}; export the model again") from error
    transform = Transform.load(path / "transform")
    titles = {name: Titles.read(path, name, table.ids) for name, table in transform.tables.items()}
    return Artifact(path, manifest, schema, transform, _nested(arrays), probe, titles)


def scoring_of(artifact: Artifact) -> tuple[Callable[..., Any], list[str]]:
    """The artifact's function (weights, users, ads) → (logits, activation weights), and notes.

    It is the exported one. An older JAX than that which exported it may not read it, and it may not
    be for this platform: then it is built anew from the config, and a note says so.

    Raises:
      DinError: it can't be built.
    """
    exported_by = artifact.manifest["versions"]["jax"]
    platform = jax.default_backend()
    try:
        exported = jax.export.deserialize(bytearray((artifact.path / "scoring.bin").read_bytes()))
        names = {"gpu": "cuda"}
        if names.get(platform, platform) in exported.platforms:
            return exported.call, []
        problem = f"it was exported for {', '.join(exported.platforms)}, not for {platform}"
    except Exception as error:  # whatever an older version of JAX makes of it
        problem = f"it was exported by jax {exported_by}, here is {jax.__version__} ({error})"
    # The models, which an artifact rarely needs.
    from din_jax.checkpoint import compatibility
    from din_jax.export.building import scoring_by

    config = compatibility.completed(ConfigDict(artifact.manifest["config"]), artifact.path)
    function = scoring_by(config, artifact.transform.schema)
    return function, [f"{artifact.path}: {problem}; the function was built from the model's config"]


def _named(weights: Mapping[str, Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for kind, values in weights.items():
        folder = _FOLDERS.get(kind, f"weights/{kind}")
        for key, array in jax.tree_util.tree_leaves_with_path(values):
            yield f"{folder}/{jax.tree_util.keystr(key, simple=True, separator='/')}", array


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_named`."""
    weights: dict[str, Any] = {"params": {}, "batch_stats": {}, "tables": {}, "frequent": {}}
    kinds = {folder: kind for kind, folder in _FOLDERS.items()}
    for name, array in arrays.items():
        folder, *keys = name.split("/")
        part = weights[kinds[folder] if folder in kinds else keys.pop(0)]
        for key in keys[:-1]:
            part = part.setdefault(key, {})
        part[keys[-1]] = array
    return weights


def _files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def _checksum(file: Path) -> list[Any]:
    """[bytes, SHA-256] of a file."""
    digest = hashlib.sha256()
    size = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return [size, digest.hexdigest()]


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    with contextlib.suppress(OSError):  # not every file system supports it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
