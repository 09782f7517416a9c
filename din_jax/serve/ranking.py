"""Orders candidates by what a click is expected to bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from din_jax.export.encoding import InvalidRequest


class Ranking(NamedTuple):
    """Candidates in the order of CTR^α · bid, the greatest first; equal ones in the given order.

    Attributes:
      order: int64 [C], the places of the candidates in the request.
      probability: float64 [C], their click probabilities, in this order.
      value: float64 [C], CTR^α · bid, in this order.
    """

    order: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]


def ranking(
    probability: npt.NDArray[np.float64], bids: Sequence[float] | None, alpha: float
) -> Ranking:
    """Orders candidates by CTR^α · bid.

    Raises:
      InvalidRequest: bids are not one number from 0 on a candidate, or α is not over 0.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 100:
        raise InvalidRequest("alpha", f"{alpha!r}; expected a number over 0")
    value = probability**alpha
    if bids is not None:
        numbers = [b for b in bids if isinstance(b, int | float) and not isinstance(b, bool)]
        if len(bids) != len(probability) or len(numbers) != len(bids):
            raise InvalidRequest("bids", f"expected {len(probability)} numbers, one a candidate")
        bid = np.array(numbers, np.float64)
        if not (np.isfinite(bid) & (bid >= 0)).all():
            raise InvalidRequest("bids", "expected finite numbers from 0 on")
        value = value * bid
    order = np.argsort(-value, kind="stable")
    return Ranking(order, probability[order], value[order])
