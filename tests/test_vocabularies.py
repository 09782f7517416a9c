"""Vocabularies against plain dictionaries."""

import collections

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from din_jax.prepare import vocabularies


@given(
    st.one_of(
        st.lists(st.one_of(st.none(), st.integers(-3, 40)), min_size=1),
        st.lists(st.one_of(st.none(), st.text("abc", max_size=2)), min_size=1),
    ).filter(lambda ids: any(i is not None for i in ids)),
    st.floats(0, 1),
)
def test_rows_are_those_of_a_dictionary(ids, share):
    fitted = vocabularies.fit(
        pl.Series("goods", ids), np.random.default_rng(0), unknown_share=share
    )
    counted = collections.Counter(i for i in ids if i is not None)
    once = {i for i, n in counted.items() if n == 1}
    kept = fitted.ids.to_list()
    left_out = set(counted) - set(kept)
    assert kept == sorted(kept) and set(kept) <= set(counted)
    assert left_out <= once
    assert len(left_out) == fitted.left_out
    assert fitted.left_out == min(round(share * sum(counted.values())), len(once))
    assert fitted.counts.tolist() == [counted[i] for i in kept]
    row = {i: r for r, i in enumerate(kept, start=1)}
    new = "new" if fitted.ids.dtype == pl.String else 999
    asked = [*ids, new]
    expected = [row.get(i, 0) for i in asked]
    assert fitted.rows(pl.Series("asked", asked, dtype=fitted.ids.dtype)).tolist() == expected


def test_who_is_left_out_is_seeded():
    ids = pl.Series("goods", np.arange(2000))

    def left_out(seed):
        return set(vocabularies.fit(ids, np.random.default_rng(seed)).ids)

    assert left_out(0) == left_out(0)
    assert left_out(0) != left_out(1)
    assert len(left_out(0)) == 1980


def test_large_integers_are_never_floats():
    large = 2**62
    fitted = vocabularies.fit(
        pl.Series("goods", [large, large, large + 1, large + 1]), np.random.default_rng(0)
    )
    assert fitted.rows(pl.Series([large + 1, large, large + 2])).tolist() == [2, 1, 0]
    assert fitted.ids.dtype == pl.Int64


def test_all_null_has_no_rows():
    fitted = vocabularies.fit(
        pl.Series("goods", [None, None], dtype=pl.Int64), np.random.default_rng()
    )
    assert len(fitted.ids) == 0
    assert fitted.rows(pl.Series([5])).tolist() == [0]
