"""The versions of a model: the one that serves, the one before it, and newer ones on disk."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from din_jax.errors import DinError
from din_jax.serve.scorer import Scorer

_log = logging.getLogger("din_jax.serve")

Event = str  # "loaded", "refused" or "rolled_back"


class Version(NamedTuple):
    """A model that has been loaded and checked.

    Attributes:
      name: of its folder; of a single artifact, `Artifact.name`.
      scorer: that scores.
    """

    name: str
    scorer: Scorer


class Versions:
    """Serves the newest version that is sound, and keeps the one before it.

    `path` is an artifact, or a folder of artifacts, each a version. The newest is the last by
    natural order of the names: v10 is after v9. Names that begin with a dot are passed over.

    A version that can't be loaded is refused once: until its files change, it is not tried again.
    Neither is one that was rolled back.

    Args:
      path: of the artifact or the folder.
      load: makes a scorer of an artifact's folder, ready to score; it is given the scorer that
        serves, or None.
      on_event: is told "loaded", "refused" or "rolled_back", and the version's name.

    Raises:
      DinError: no version can be loaded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        load: Callable[[Path, Scorer | None], Scorer],
        on_event: Callable[[Event, str], object] = lambda event, name: None,
    ):
        self._path, self._load, self._on_event = Path(path), load, on_event
        self._swap = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tried: dict[Path, object] = {}  # the files of a version as they were then
        self._seen: dict[Path, object] = {}  # as they were at the last look
        self._current: Version | None = None
        self._previous: Version | None = None
        problem = None
        for folder in self._newer():
            self._tried[folder] = _files(folder)
            if (problem := self._try(folder)) is None:
                break
        if self._current is None:
            raise problem or DinError(
                f"{path} is no exported model, and has none in it; make one with `python -m "
                "din_jax.export`"
            )

    @property
    def current(self) -> Version:
        """The version that serves. A request uses one to its end, whatever comes after it."""
        assert self._current is not None
        return self._current

    @property
    def previous(self) -> Version | None:
        """The version that `rollback` goes back to."""
        return self._previous

    def watch(self, seconds: float) -> None:
        """Looks for new versions at intervals, in a thread, until `close`."""

        def run() -> None:
            while not self._stop.wait(seconds):
                self.poll()

        self._thread = threading.Thread(target=run, name="din_jax-versions", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread of `watch`. A version that is being loaded is left to itself."""
        self._stop.set()

    def poll(self) -> bool:
        """Loads a newer version if there is one whose files have not changed since the last call.

        Returns:
          Whether there was one, and it now serves.
        """
        for folder in self._newer():
            files = _files(folder)
            complete = self._seen.get(folder) == files  # else it may still be written
            self._seen[folder] = files
            if complete and self._tried.get(folder) != files:
                self._tried[folder] = files
                if self._try(folder) is None:
                    return True
        return False

    def rollback(self, name: str = "") -> Version:
        """Goes back to the previous version; there is none to go back to after that.

        Args:
          name: of the version to leave; nothing is done if another one serves.

        Raises:
          DinError: there is no previous version, or another one serves.
        """
        with self._swap:
            left = self.current
            if name and left.name != name:
                raise DinError(f"version {left.name} serves, not {name}")
            if self._previous is None:
                raise DinError("there is no previous version")
            self._current, self._previous = self._previous, None
        _log.warning("rolled back from version %s to %s", left.name, self.current.name)
        self._on_event("rolled_back", left.name)
        return self.current

    def _newer(self) -> Iterator[Path]:
        """The folders of newer versions than that which serves, the newest first."""
        if (self._path / "manifest.json").is_file():
            yield self._path
            return
        try:
            folders = [f for f in self._path.iterdir() if f.is_dir() and f.name[0] != "."]
        except OSError:
            return
        for folder in sorted(folders, key=lambda f: _natural(f.name), reverse=True):
            if self._current is None or _natural(folder.name) >= _natural(self._current.name):
                yield folder

    def _try(self, folder: Path) -> DinError | None:
        """Loads a version and lets it serve, or says what is wrong with it."""
        try:
            scorer = self._load(folder, self._current and self._current.scorer)
        except Exception as error:  # whatever damaged files lead to
            expected = isinstance(error, DinError)
            _log.error("refused version %s: %s", folder.name, error, exc_info=not expected)
            self._on_event("refused", folder.name)
            return error if isinstance(error, DinError) else DinError(f"{folder}: {error}")
        name = scorer.artifact.name if folder == self._path else folder.name
        for note in scorer.notes:
            _log.warning("version %s: %s", name, note)
        if self._current:
            for change in _changes(self._current.scorer, scorer):
                _log.warning("version %s: %s", name, change)
        with self._swap:
            self._current, self._previous = Version(name, scorer), self._current
        _log.info("version %s serves", name)
        self._on_event("loaded", name)
        return None


def _natural(name: str) -> tuple[tuple[str | int, ...], str]:
    """Orders names so that v10 is after v9."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), name


def _files(folder: Path) -> object:
    """The files of a folder: equal only if none of them has changed."""
    found = []
    for root, _, names in os.walk(folder.resolve()):
        for name in names:
            try:
                stat = os.stat(os.path.join(root, name))
            except OSError:  # it has gone since
                continue
            found.append((root, name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def _changes(old: Scorer, new: Scorer) -> Iterator[str]:
    """What requests must have otherwise than before."""
    before, now = set(_inputs(old)), set(_inputs(new))
    if added := sorted(now - before):
        yield f"requests need other fields than before: {', '.join(added)}"
    if gone := sorted(before - now):
        yield f"requests may no longer have: {', '.join(gone)}"


def _inputs(scorer: Scorer) -> Iterator[str]:
    encoder = scorer.encoder
    yield from (f"user.{name}" for name in encoder.user_fields)
    yield from (f"context.{name}" for name in encoder.context_fields)
    yield from (f"candidates.{name}" for name in encoder.ad_fields)
    for sequence in encoder.schema.sequences:
        parts: list[Any] = [*sequence.fields, *sequence.numbers]
        yield from (f"behaviors.{sequence.name}.{part.name}" for part in parts)
