"""Random generators, one for each purpose."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A generator of its own for a purpose, so that a further table changes no other's draws."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])
