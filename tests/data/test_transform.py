"""The transform of raw values against dictionaries, and against a store."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from din_jax.data import id_lookup
from din_jax.data.numbers import fit
from din_jax.data.schema import Field, NumericField, Schema, Table
from din_jax.data.transform import Transform
from din_jax.data.vocabularies import Buckets, Fitted, fit_buckets
from din_jax.errors import DinError

numbers = st.integers(-(2**63), 2**63 - 1)
some_numbers = st.integers(-4, 9)
texts = st.text("ab7", max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.lists(st.one_of(numbers, some_numbers), unique=True, max_size=9),
        st.lists(texts, unique=True, max_size=9),
    ),
    st.data(),
)
def test_an_index_finds_what_a_dictionary_finds(ids, data):
    dtype = pl.String if ids and isinstance(ids[0], str) else pl.Int64
    index = id_lookup.IdIndex(pl.Series(ids, dtype=dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_lookup, "_TEXTS", 0)
        of_many = id_lookup.IdIndex(pl.Series(ids, dtype=dtype))
    row = {i: r for r, i in enumerate(ids, start=1)}
    kind = texts if dtype == pl.String else st.one_of(numbers, some_numbers)
    known = [st.sampled_from(ids)] if ids else []
    values = data.draw(st.lists(st.one_of(st.none(), kind, *known), max_size=9))
    series = pl.Series(values, dtype=dtype)
    for one in (index, of_many):
        assert one.rows(series).tolist() == [row.get(v, 0) for v in values]
    of_list = index.rows_of(values)
    assert of_list is None or of_list.tolist() == [row.get(v, 0) for v in values]
    several = any(v is not None for v in values)
    assert (of_list is None) == (not several or (not ids and dtype == pl.Int64))
    assert id_lookup.rows_in(pl.Series(ids, dtype=dtype), series).tolist() == [
        row.get(v, 0) for v in values
    ]


def test_lists_of_other_types_are_not_looked_up_as_they_are():
    for ids in ([7, 2**62], ["7", "x"]):
        index = id_lookup.IdIndex(pl.Series(ids))
        for values in ([7, "7"], [7.0], [True], [2**70], ["7" if ids[0] == 7 else 7], [None]):
            assert index.rows_of(values) is None


def test_equal_hashes_are_not_taken_for_equal_ids(monkeypatch):
    monkeypatch.setattr(id_lookup, "_TEXTS", 0)
    ids = pl.Series(["a", "b", "c"])
    true_keys = id_lookup.IdIndex._keys

    def keys(values, seed):  # with the first seed, b and c have one hash; d always has that of a
        hashes = true_keys(values.replace("d", "a"), seed)
        return np.where((values == "c") & (seed == 0), true_keys(pl.Series(["b"]), seed), hashes)

    monkeypatch.setattr(id_lookup.IdIndex, "_keys", staticmethod(keys))
    index = id_lookup.IdIndex(ids)
    assert index.rows(pl.Series(["c", "d", "b", "a"])).tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize("spread", [1, 10**12])  # looked up in an array, and by Polars
@pytest.mark.parametrize("many", [False, True])
def test_numbers_as_text_and_floats_are_the_same_ids(spread, many):
    ids = pl.Series([3 * spread, 5 * spread, 12 * spread])
    schema = Schema((Table("item", 4),), (Field("item", "item", "ad"),), ())
    transform = Transform(schema, {"item": Fitted(ids, np.zeros(3), 0)}, {})
    repeat = 1 if not many else 1000
    if not many:
        ids = pl.concat([ids, pl.Series(range(-100, 0))])
        transform = Transform(schema, {"item": Fitted(ids, np.zeros(103), 0)}, {})
    for values in (
        [12 * spread, 4, None, 3 * spread],
        [f"{12 * spread}", "x", None, f"{3 * spread}.0"],
        [12.0 * spread, 3.5 * spread + 0.5, None, 3.0 * spread],
    ):
        rows = transform.rows("item", pl.Series(values * repeat))
        assert rows.tolist() == [3, 0, 0, 1] * repeat


def test_a_saved_transform_is_the_same(tmp_path):
    rng = np.random.default_rng(0)
    prices = rng.lognormal(size=500)
    schema = Schema(
        (Table("item", 4), Table("price", 11)),
        (Field("item", "item", "ad"), Field("price", "price", "ad")),
        (),
        (NumericField("cost", "context"),),
    )
    transform = Transform(
        schema,
        {
            "item": Fitted(pl.Series(["b", "x", "y"]), np.arange(3), 0),
            "price": fit_buckets(pl.Series(prices), 10),
        },
        {"cost": fit(prices, "log1p")},
    )
    transform.save(tmp_path / "transform")
    loaded = Transform.load(tmp_path / "transform")
    assert loaded.schema == schema
    assert isinstance(loaded.tables["price"], Buckets)
    queries = pl.Series([*rng.lognormal(size=50), None, np.nan])
    expected = 1 + np.searchsorted(np.quantile(prices, np.arange(1, 10) / 10), queries[:50])
    assert (np.abs(loaded.rows("price", queries)[:50].astype(int) - expected) <= 1).all()
    assert loaded.rows("price", queries).tolist() == transform.rows("price", queries).tolist()
    assert loaded.rows("price", queries)[50:].tolist() == [0, 0]
    np.testing.assert_array_equal(
        loaded.transformed("cost", queries), transform.transformed("cost", queries)
    )
    x = np.log1p(queries[:50].to_numpy())
    np.testing.assert_allclose(
        loaded.transformed("cost", queries)[:50],
        (x - np.log1p(prices).mean()) / np.log1p(prices).std(),
        rtol=1e-5,
        atol=1e-5,
    )
    assert loaded.rows("item", pl.Series(["y", "a"])).tolist() == [3, 0]
    (tmp_path / "transform" / "item.parquet").write_bytes(b"PAR1")
    with pytest.raises(DinError, match="missing or damaged"):
        Transform.load(tmp_path / "transform")
