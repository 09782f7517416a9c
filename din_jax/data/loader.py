"""Reads the batches of a source ahead, through Grain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grain

from din_jax.data.packing import Batch
from din_jax.data.source import BatchSource


class _Stretches:
    """A source as Grain reads it: its cost is a call's, and small batches are many."""

    def __init__(self, source: BatchSource):
        self._source = source

    def __len__(self) -> int:
        return self._source.stretches

    def __getitem__(self, index: int) -> list[Batch]:
        return self._source.stretch(int(index))


def batches(source: BatchSource, start: int = 0, *, prefetch: int = 8) -> Iterator[Batch]:
    """Iterates over a source's batches from position `start`, read ahead in a thread of its own.

    Args:
      source: what is read; `source.fingerprint` says of what.
      start: the first batch.
      prefetch: how many batches are read ahead; small ones in whole stretches.
    """
    if start >= len(source):
        return
    stretch, place = source.place(start)
    ahead = max(2, -(-prefetch // source.at_once))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    iterator = iter(grain.MapDataset.source(_Stretches(source)).to_iter_dataset(options))
    if stretch:
        state: Mapping[str, Any] = iterator.get_state()
        iterator.set_state({**state, "next_index": stretch})
    for of_stretch in iterator:
        yield from of_stretch[place:]
        place = 0
