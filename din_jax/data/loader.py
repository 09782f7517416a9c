"""Prefetches the batches of a source through Grain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grain

from din_jax.data.packing import Batch
from din_jax.data.source import BatchSource


def batches(source: BatchSource, start: int = 0, *, prefetch: int = 8) -> Iterator[Batch]:
    """Iterates over a source's batches, which a background thread prefetches.

    Args:
      source: the source; `source.fingerprint` identifies its content and order.
      start: the index of the first batch.
      prefetch: the number of batches to prefetch, rounded up to whole chunks.
    """
    if start >= len(source):
        return
    chunk, position = source.chunk_of(start)
    chunks_ahead = max(2, -(-prefetch // source.batches_per_chunk))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=chunks_ahead)
    iterator = iter(grain.MapDataset.source(_Chunks(source)).to_iter_dataset(options))
    if chunk:
        state: Mapping[str, Any] = iterator.get_state()
        iterator.set_state({**state, "next_index": chunk})
    for chunk_batches in iterator:
        yield from chunk_batches[position:]
        position = 0


class _Chunks:
    """A random-access data source of chunks for Grain, whose overhead is per element."""

    def __init__(self, source: BatchSource):
        self._source = source

    def __len__(self) -> int:
        return self._source.chunks

    def __getitem__(self, index: int) -> list[Batch]:
        return self._source.chunk(int(index))
