"""Types of ids: no id changes, and lookups of ids against dicts."""

import re
from collections import Counter

import polars as pl
import pytest
from hypothesis import example, given, settings, strategies as st

from din_jax.data import id_lookup
from din_jax.data.id_lookup import as_ids_of
from din_jax.prepare.log.value_types import common_type, compact, unify, whole_numbers

INTEGERS = {
    pl.Int8: (-(2**7), 2**7 - 1),
    pl.Int32: (-(2**31), 2**31 - 1),
    pl.Int64: (-(2**63), 2**63 - 1),
    pl.UInt8: (0, 2**8 - 1),
    pl.UInt32: (0, 2**32 - 1),
    pl.UInt64: (0, 2**64 - 1),
}
ODD = (
    *("007", "00", "-0", "+1", " 7", "7 ", "7\n", "1_000", "0x1", "٣", "x", "-", ""),
    *("1.0", "1.", "3.50", "1e5", "1e-5", "1e400", "inf", "nan", "-7.0", "-007", "007.0"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808"),
    *("18446744073709551615", "9007199254740993.0", "99999999999999999999999"),
)
text = st.one_of(
    st.sampled_from(ODD), st.integers(-(2**63), 2**63 - 1).map(str), st.integers(-9, 99).map(str)
)
texts = st.lists(st.one_of(st.none(), text), max_size=6)


def is_usual(value):
    """Whether a text is what Python writes for an int64."""
    try:
        return str(int(value)) == value and value.isascii() and -(2**63) <= int(value) < 2**63
    except ValueError:
        return False


@settings(max_examples=80, deadline=None)
@given(texts, st.integers(0, 1))
@example(["-0"], 1)
@example(["-007"], 1)
@example(["+1"], 1)
@example(["00"], 1)
def test_text_becomes_numbers_only_if_they_are_written_so(values, long):
    values = ["5"] * 1500 * long + values  # the first thousand do not decide
    numbers = compact(pl.Series(values, dtype=pl.String))
    assert numbers.cast(pl.String).to_list() == values
    known = [v for v in values if v is not None]
    assert (numbers.dtype == pl.Int64) == (bool(known) and all(map(is_usual, known)))


@settings(max_examples=80, deadline=None)
@given(texts)
def test_text_with_floats_becomes_whole_numbers_or_stays(values):
    known = [v for v in values if v is not None]
    form = r"-?(0|[1-9][0-9]*)(\.0*)?([eE]\+?[0-9]+)?"
    floats = all(re.fullmatch(form, v) for v in known) and any(
        not v.lstrip("-").isdigit() for v in known
    )
    series = pl.Series(values, dtype=pl.String)
    if floats and any(abs(float(v)) >= 2**53 for v in known) and "1e400" not in known:
        with pytest.raises(OverflowError):
            whole_numbers(series)
    elif floats and "1e400" not in known:
        expected = [None if v is None else int(float(v)) for v in values]
        assert whole_numbers(series).to_list() == expected
    else:
        assert whole_numbers(series) is None


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(width=64), st.integers(-(2**54), 2**54).map(float))))
def test_floats_become_whole_numbers_if_all_are(values):
    series = pl.Series(values, dtype=pl.Float64)
    known = [v for v in values if v is not None and v == v]
    if not known or not all(v.is_integer() for v in known):
        assert whole_numbers(series) is None
    elif max(map(abs, known)) >= 2**53:
        with pytest.raises(OverflowError):
            whole_numbers(series)
    else:
        assert whole_numbers(series).to_list() == [
            None if v is None or v != v else int(v) for v in values
        ]


@st.composite
def integers(draw, kinds=tuple(INTEGERS)):
    kind = draw(st.sampled_from(kinds))
    low, high = INTEGERS[kind]
    start = draw(st.sampled_from([low, max(low, -3), high // 2, high - 40]))
    one = st.one_of(st.integers(start, min(high, start + 40)), st.integers(low, high))
    values = draw(st.lists(st.one_of(st.none(), one), max_size=8))
    return pl.Series("x", values, dtype=kind)


@settings(max_examples=60, deadline=None)
@given(st.lists(integers(), min_size=1, max_size=3))
def test_parts_of_whole_numbers_keep_their_values(parts):
    values = [value for part in parts for value in part.to_list()]
    joined = unify(parts)
    known = [v for v in values if v is not None]
    assert joined.cast(pl.String).to_list() == [None if v is None else str(v) for v in values]
    if known and (min(known) >= -(2**63)) and (max(known) < 2**63 or min(known) >= 0):
        assert joined.dtype.is_integer()
    dtype = common_type(part.dtype for part in parts)
    for part in parts:
        assert part.cast(dtype).cast(pl.String).to_list() == part.cast(pl.String).to_list()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([[1, None], [2.0, None]], [1, None, 2, None]),
        ([[1], [2.5]], [1.0, 2.5]),
        ([["a"], [7]], ["a", "7"]),
        ([["007"], [7.0]], ["007", "7"]),
        ([[None, None], ["a"]], [None, None, "a"]),
        ([[None], [None]], [None, None]),
        ([[[1]], [None]], [[1], None]),
        ([[2**60], [float(2**53)]], ValueError),
        ([[True], [1]], pl.exceptions.SchemaError),
        ([[[1]], [1]], pl.exceptions.SchemaError),
    ],
)
def test_parts_of_other_types(parts, expected):
    for order in (slice(None), slice(None, None, -1)):
        series = [pl.Series("x", part) for part in parts][order]
        if isinstance(expected, list):
            values = [expected[: len(parts[0])], expected[len(parts[0]) :]][order]
            assert unify(series).to_list() == [*values[0], *values[1]]
        else:
            with pytest.raises(expected):
                unify(series)


@settings(max_examples=80, deadline=None)
@given(integers(), integers(), texts, st.sampled_from(["numbers", "text", "numbers in text"]))
def test_lookups_are_those_of_a_dict(ids, values, others, kind):
    ids = ids.unique(maintain_order=True).drop_nulls()
    if kind == "text":
        ids, values = ids.cast(pl.String), pl.Series(others, dtype=pl.String)
    elif kind == "numbers in text":
        values = pl.Series([*others, *ids.cast(pl.String)[:2]], dtype=pl.String)
    place = {str(value): i for i, value in enumerate(ids.to_list())}
    expected = [-1 if v is None else place.get(str(v), -1) for v in values.to_list()]
    assert id_lookup.index_in(ids, values).tolist() == expected


@settings(max_examples=80, deadline=None)
@given(st.one_of(integers(), texts.map(lambda v: pl.Series("x", v, dtype=pl.String))))
def test_counts_are_those_of_a_counter(values):
    expected = Counter(v for v in values.to_list() if v is not None)
    ids, counts = id_lookup.counts(values)
    assert ids.dtype == values.dtype
    assert ids.to_list() == sorted(expected, key=lambda v: v.encode() if isinstance(v, str) else v)
    assert dict(zip(ids.to_list(), counts.tolist(), strict=True)) == expected
    assert Counter(id_lookup.distinct(values).to_list()) == Counter(expected.keys())


def test_text_among_ids_that_are_numbers():
    values = ["4", "4.0", "004", "4.5", "x", None, "-0", "1e1", "9223372036854775808", ""]
    series = pl.Series(values, dtype=pl.String)
    assert as_ids_of(series, pl.Int64()).to_list() == [4, 4, *[None] * 4, 0, 10, None, None]
    assert as_ids_of(series, pl.String()).to_list() == values
