"""How often an id occurs in a range of a column, with no range built."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Occurrences:
    """The positions of each id in a column, 8 bytes a position.

    With the positions sorted by (id, position), the number of times that an id occurs in a range
    is a difference of two bisections.

    Args:
      ids: [P] the column.
      positions: ascending, those that count; None: all.
    """

    def __init__(self, ids: npt.NDArray[Any], positions: npt.NDArray[Any] | None = None):
        self._span = len(ids) + 1
        counted = ids if positions is None else ids[positions]
        order = np.argsort(counted, kind="stable")
        self._keys = counted[order].astype(np.int64) * self._span
        self._keys += order if positions is None else positions[order]

    def count(
        self, ids: npt.NDArray[Any], start: npt.NDArray[Any], end: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """[N] how often `ids[i]` occurs at the positions start[i] … end[i] − 1."""
        first = ids * self._span
        before_end = np.searchsorted(self._keys, first + end)
        return before_end - np.searchsorted(self._keys, first + start)
