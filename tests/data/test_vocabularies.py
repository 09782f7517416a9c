"""Vocabularies against plain dictionaries."""

import collections

import numpy as np
import polars as pl
from hypothesis import given, strategies as st

from din_jax.data import vocabularies


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
    known = fitted.ids.to_list()
    left_out = set(counted) - set(known)
    assert known == sorted(known) and set(known) <= set(counted)
    assert left_out <= once
    assert len(left_out) == fitted.left_out
    assert fitted.left_out == min(round(share * sum(counted.values())), len(once))
    assert fitted.counts.tolist() == [counted[i] for i in known]
    row = {i: r for r, i in enumerate(known, start=1)}
    new = "new" if fitted.ids.dtype == pl.String else 999
    queries = [*ids, new]
    expected = [row.get(i, 0) for i in queries]
    assert fitted.rows(pl.Series("queries", queries, dtype=fitted.ids.dtype)).tolist() == expected


def test_ids_of_the_whole_catalogue_have_rows_with_a_count_of_zero():
    ids, others = pl.Series("goods", [5, 3, 5, None]), pl.Series("goods", [9, 3, 1])
    fitted = vocabularies.fit(ids, np.random.default_rng(0), unknown_share=0, others=others)
    assert dict(zip(fitted.ids, fitted.counts, strict=True)) == {1: 0, 3: 1, 5: 2, 9: 0}
    fitted = vocabularies.fit(ids, np.random.default_rng(0), min_count=2, others=others)
    assert fitted.ids.to_list() == [5]


def test_the_seed_decides_which_ids_are_left_out():
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


@given(
    st.lists(st.one_of(st.none(), st.floats(width=16)), min_size=1),
    st.integers(2, 9),
    st.lists(st.floats(width=16)),
)
def test_buckets_are_between_the_quantiles_of_the_numbers(numbers, buckets, others):
    fitted = vocabularies.fit_buckets(pl.Series("price", numbers, pl.Float64), buckets)
    real = sorted(x for x in numbers if x is not None and x == x)
    # The smallest numbers that a fraction of i / buckets of all do not exceed.
    ends = {real[-(-len(real) * i // buckets) - 1] for i in range(1, buckets)} if real else set()
    lower = [-np.inf, *sorted(end for end in ends if end > real[0])]
    assert fitted.ids.to_list() == lower

    def row(x):
        return 0 if x is None or x != x else sum(x >= end for end in lower)

    queries = [*numbers, *others]
    assert fitted.rows(pl.Series(queries, dtype=pl.Float64)).tolist() == [row(x) for x in queries]
    rows = [row(x) for x in numbers]
    assert fitted.counts.tolist() == [rows.count(r) for r in range(1, len(lower) + 1)]


def test_rare_ids_are_unknown_and_no_more_are_left_out():
    ids = pl.Series("goods", [1] * 5 + [2] * 3 + [3] * 2 + list(range(10, 30)))
    fitted = vocabularies.fit(ids, np.random.default_rng(0), unknown_share=0.5, min_count=3)
    assert (fitted.ids.to_list(), fitted.counts.tolist()) == ([1, 2], [5, 3])
    assert (fitted.left_out, fitted.rare) == (0, 21)
