"""The chunks in which Orbax stores an array.

Orbax divides an array evenly: if its number of rows is prime, each chunk is one row, and a table of
ten million rows takes hours to write and to read. Zarr, the format, needs no even division: its
last chunk may be shorter. Orbax has no option for it, so that its function is replaced.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from orbax.checkpoint._src.arrays import subchunking

_EVENLY = subchunking.choose_chunk_shape
_LEAST = (
    4  # an even division is kept if its chunks have this fraction of the size that was asked for
)


@functools.wraps(_EVENLY)
def _chunk_shape(
    global_shape: Any, write_shape: Any, dtype: Any, target_byte_size: int | None, **options: Any
) -> Any:
    even = _EVENLY(global_shape, write_shape, dtype, target_byte_size, **options)
    if target_byte_size is None or 0 in write_shape:
        return even
    if math.prod(even) * dtype.itemsize * _LEAST >= min(
        target_byte_size, math.prod(write_shape) * dtype.itemsize
    ):
        return even
    # The first axis that one device writes as a whole. Those before it are of devices.
    axis = next(
        i
        for i, (whole, written) in enumerate(zip(global_shape, write_shape, strict=True))
        if whole == written and written > 1
    )
    row_bytes = math.prod(write_shape[axis + 1 :]) * dtype.itemsize
    rows = min(max(1, target_byte_size // row_bytes), write_shape[axis])
    return (*(1 for _ in write_shape[:axis]), rows, *write_shape[axis + 1 :])


def divide_unevenly() -> None:
    """Makes Orbax store arrays in chunks of the size that is asked for."""
    subchunking.choose_chunk_shape = _chunk_shape
