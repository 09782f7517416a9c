"""Reads the batches of a source ahead, through Grain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grain

from din_jax.data.packing import Batch
from din_jax.data.source import BatchSource


def batches(source: BatchSource, start: int = 0, *, prefetch: int = 8) -> Iterator[Batch]:
    """Iterates over a source's batches from position `start`, read ahead in a thread of its own.

    Args:
      source: what is read; `source.fingerprint` identifies it.
      start: the first batch.
      prefetch: how many batches are read ahead, rounded up to whole chunks.
    """
    if start >= len(source):
        return
    chunk, position = source.chunk_of(start)
    ahead = max(2, -(-prefetch // source.batches_per_chunk))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    iterator = iter(grain.MapDataset.source(_Chunks(source)).to_iter_dataset(options))
    if chunk:
        state: Mapping[str, Any] = iterator.get_state()
        iterator.set_state({**state, "next_index": chunk})
    for of_chunk in iterator:
        yield from of_chunk[position:]
        position = 0


class _Chunks:
    """A source as Grain reads it, a chunk at a time: Grain's cost is one a call."""

    def __init__(self, source: BatchSource):
        self._source = source

    def __len__(self) -> int:
        return self._source.chunks

    def __getitem__(self, index: int) -> list[Batch]:
        return self._source.chunk(int(index))
