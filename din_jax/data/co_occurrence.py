"""Vectors of ids by their co-occurrence in histories: a factorization of their PPMI.

Two ids occur together if one user's history has both. With c_ij users that have i and j, the
positive pointwise mutual information is

    PPMI_ij = max(0, ln(c_ij · Σ c / (Σ_k c_ik · Σ_k c_jk))),    c_ii = 0,

and the vectors are U √Σ of its truncated singular value decomposition U Σ Vᵀ (Levy, Goldberg and
Dagan, "Improving Distributional Similarity with Lessons Learned from Word Embeddings", TACL 2015):
ids that occur with the same others have similar vectors. No label is read.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.data.cache import cached
from din_jax.data.packing import Packer, ranges

RECENT = 50  # behaviours of a history that count
# Pairs of ids in all histories. If there are more, only every n-th user counts.
MOST_PAIRS = 30_000_000
IDS_PER_DIMENSION = 4  # a table of fewer ids learns from labels soon enough
_MOST_IDS = 200_000  # that have vectors: those that most users have
_VERSION = 1  # of the computation; a cache of another version is ignored


def latest_histories(
    packer: Packer,
    sequence: str,
    users: npt.NDArray[Any],
    samples: npt.NDArray[Any],
    recent: int = RECENT,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The most recent events of the last history of each user.

    Args:
      packer: the store, and how much of each history is used.
      sequence: whose events.
      users: int64[n] of the samples.
      samples: int64[n] rows of the store.
      recent: how many events of each.

    Returns:
      int64[E] positions in the events, and int64[E] the user of each.
    """
    start, end = packer.history(sequence, samples)
    order = np.lexsort((end, users))
    last = order[np.flatnonzero(np.diff(users[order], append=-1))]  # one sample a user
    events, owner = ranges(np.maximum(start, end - recent)[last], end[last])
    return events, users[last][owner]


def baskets(
    entries: npt.NDArray[Any], rows: int, most_pairs: int = MOST_PAIRS
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The distinct known ids of each user; of every n-th user if there are too many pairs.

    Args:
      entries: int64, user · `rows` + id, in any order; id 0 is unknown.
      rows: K of the table.
      most_pairs: of ids of one user, in all.

    Returns:
      int64 users and int64 ids, ascending.
    """
    entries = np.unique(entries)
    entries = entries[entries % rows > 0]
    _, user, size = np.unique(entries // rows, return_inverse=True, return_counts=True)
    pairs = int((size.astype(np.int64) ** 2).sum())
    users, ids = np.divmod(entries[user % max(1, -(-pairs // most_pairs)) == 0], rows)
    return users, ids


def counts_together(user: npt.NDArray[Any], ids: npt.NDArray[Any], rows: int) -> Any:
    """c_ij, a sparse array [K, K] with c_ii, of `baskets`."""
    import scipy.sparse

    stops = np.append(np.flatnonzero(np.diff(user, prepend=-1)), len(user))
    in_basket = scipy.sparse.csr_array(
        (np.ones(len(ids), np.int32), ids, stops), shape=(len(stops) - 1, rows)
    )
    return in_basket.T.tocsr() @ in_basket


def co_occurrence_vectors(
    packer: Packer, split: str, table: str, dim: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Computes the vectors of a table's ids; cached in the store's folder if it is writable.

    All one-hot fields of behaviours that look the table up count, each history by itself.

    Args:
      packer: the store, and how much of each history is used.
      split: of the samples whose histories count.
      table: its name.
      dim: D.

    Returns:
      int32[n] rows, ascending, without row 0; float32[n, D], with a standard deviation of 1 over
      all numbers. None of a table of fewer than `IDS_PER_DIMENSION` · D ids.
    """

    def compute() -> bytes:
        rows, vectors = _vectors(packer, split, table, dim)
        buffer = io.BytesIO()
        np.savez(buffer, rows=rows, vectors=vectors)
        return buffer.getvalue()

    key = [_VERSION, split, table, dim, packer.max_history]
    with np.load(io.BytesIO(cached(packer.store, "co_occurrence", key, compute))) as arrays:
        return arrays["rows"], arrays["vectors"]


def _vectors(
    packer: Packer, split: str, table: str, dim: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    import scipy.sparse
    from sklearn.utils.extmath import randomized_svd

    store = packer.store
    samples = np.arange(store.split(split).start, store.split(split).stop)
    users = store.column("samples/user")[samples].astype(np.int64)
    size = next(t.rows for t in store.schema.tables if t.name == table)
    all_baskets = []
    for sequence in store.schema.sequences:
        for field in sequence.fields:
            if field.table == table and not field.multi_hot:
                events, owner = latest_histories(packer, sequence.name, users, samples)
                ids = store.column(f"events/{sequence.name}/{field.name}")[events]
                all_baskets.append(baskets(owner * size + ids, size))
    having = sum((np.bincount(ids, minlength=size) for _, ids in all_baskets), np.zeros(size))
    chosen = np.flatnonzero(having)
    if len(chosen) > _MOST_IDS:
        chosen = np.sort(chosen[np.argsort(-having[chosen], kind="stable")[:_MOST_IDS]])
    none = np.empty(0, np.int32), np.empty((0, dim), np.float32)
    if len(chosen) < IDS_PER_DIMENSION * dim:
        return none
    place = np.full(size, -1)
    place[chosen] = np.arange(len(chosen))
    together = scipy.sparse.csr_array((len(chosen),) * 2, dtype=np.int64)
    for user, ids in all_baskets:
        kept = place[ids] >= 0
        together = together + counts_together(user[kept], place[ids[kept]], len(chosen))
    pairs = together.tocoo()
    apart = pairs.row != pairs.col
    row, column, count = pairs.row[apart], pairs.col[apart], pairs.data[apart].astype(np.float64)
    if not len(count):
        return none
    of_row = np.bincount(row, count, len(chosen))
    information = np.log(count * count.sum() / (of_row[row] * of_row[column]))
    more = information > 0
    matrix = scipy.sparse.csr_array(
        (information[more].astype(np.float32), (row[more], column[more])), shape=together.shape
    )
    left, singular, _ = randomized_svd(matrix, dim, n_iter=4, random_state=0)
    vectors = left * np.sqrt(singular)
    if not (scale := vectors.std()) > 0:
        return none
    known = vectors.any(axis=1)
    return chosen[known].astype(np.int32), (vectors[known] / scale).astype(np.float32)
