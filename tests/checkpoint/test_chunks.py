"""The chunks of arrays, whatever their number of rows."""

import math

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from din_jax.checkpoint import checkpoints, chunks

PRIME = 70_001
PART = 1 << 22


@pytest.mark.parametrize("rows", [PRIME, 65_536, 11 * 9091])
def test_a_stored_array_has_few_chunks(tmp_path, rows):
    assert checkpoints.PART_BYTES == PART
    values = np.arange(rows * 20, dtype=np.float32).reshape(rows, 20)
    with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
        save_args = {"table": ocp.SaveArgs(chunk_byte_size=PART)}
        checkpointer.save(tmp_path / "state", {"table": values}, save_args=save_args)
    stored = tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": (tmp_path / "state").as_uri(),
                "path": "table/",
            },
        },
        open=True,
        read=True,
    ).result()
    size = math.prod(stored.chunk_layout.read_chunk.shape) * 4
    assert PART / 4 <= size <= PART
    np.testing.assert_array_equal(stored.read().result(), values)


@pytest.mark.parametrize(
    ("whole", "written", "expected"),
    [
        ((PRIME, 16), (PRIME, 16), (65_536, 16)),
        ((PRIME,), (PRIME,), (PRIME,)),  # smaller than a part
        ((4, PRIME, 32), (1, PRIME, 32), (1, 32_768, 32)),  # a device's block
        ((2, 3, PRIME), (2, 3, PRIME), (2, 3, PRIME)),  # smaller too
        ((7, 2**21), (7, 2**21), (7, 2**17)),  # even chunks are large enough
    ],
)
def test_chunks_are_nearly_as_large_as_asked(whole, written, expected):
    assert chunks._chunk_shape(whole, written, np.dtype(np.float32), PART) == expected
