"""The types of the user's values: whole numbers, text, and what several parts have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import polars as pl

from din_jax.data.id_lookup import EXACT, WHOLE

_USUAL = r"^(?:0|-?[1-9][0-9]{0,18})$"


def plain(values: pl.Series) -> pl.Series:
    """Decimals, as warehouses write them, as numbers, and bytes that are text as text."""
    if values.dtype == pl.Decimal:
        whole = values.cast(pl.Int64, strict=False)
        if whole.null_count() == values.null_count() and bool((whole == values).all()):
            return whole
        scale = values.dtype.scale  # type: ignore[attr-defined]
        return values.cast(pl.Float64) if scale else values.cast(pl.String)
    if values.dtype == pl.Binary:
        text = values.cast(pl.String, strict=False)
        return text if text.null_count() == values.null_count() else values
    return values


def without_nulls(values: pl.Series, null_values: Sequence[str]) -> pl.Series:
    """Values, or lists of them, in which those that mean a missing value are null."""
    if not null_values:
        return values
    if isinstance(values.dtype, pl.List):
        missing = _is_missing(pl.element(), values.dtype.inner, null_values)
        return values.list.eval(pl.when(~missing).then(pl.element()))
    missing = _is_missing(pl.col(values.name), values.dtype, null_values)
    found = values.to_frame().select(missing.fill_null(False)).to_series()
    return values.set(found, None) if found.any() else values


def _is_missing(value: pl.Expr, dtype: object, null_values: Sequence[str]) -> pl.Expr:
    if isinstance(dtype, pl.DataType) and dtype.is_float():
        numbers = [float(text) for text in null_values if re.fullmatch(r"-?\d+(\.\d*)?", text)]
        return value.is_in(numbers)
    if dtype == pl.String or (isinstance(dtype, pl.DataType) and dtype.is_integer()):
        return value.cast(pl.String).is_in(null_values)
    return value.is_null()


def compact(text: pl.Series) -> pl.Series:
    """Text as int64 if every value is a whole number written in the usual way, and else unchanged.

    Writing the numbers again gives the same text, so that nothing is lost: 007, 1.0 and +1 remain
    text.
    """
    head = text.head(1000).drop_nulls()
    if len(text) == text.null_count() or not head.str.contains(_USUAL).all():
        return text
    numbers = text.cast(pl.Int64, strict=False)
    if numbers.null_count() > text.null_count():
        return text
    unusual = (text.str.starts_with("0") & (text.str.len_bytes() > 1)) | text.str.starts_with("+")
    if unusual.any() or ((numbers < 1).any() and not text.str.contains(_USUAL).all()):
        return text
    return numbers


def whole_numbers(values: pl.Series) -> pl.Series | None:
    """Floats, or text in which some are written as floats, as whole numbers; None if not all are.

    Text like 007 or +1 is an id that is no number.

    Raises:
      OverflowError: a number is 2⁵³ or more, where floats skip whole numbers.
    """
    if values.dtype == pl.String:
        if not values.str.contains(WHOLE).all():
            return None
        if values.str.contains(r"^-?[0-9]+$").all():
            return None  # whole numbers beyond int64
        values = values.cast(pl.Float64)
    finite = values.drop_nulls().drop_nans()
    if not len(finite) or not (finite.is_finite() & (finite == finite.floor())).all():
        return None
    largest = float(finite.abs().to_numpy().max())
    if largest >= EXACT:
        raise OverflowError(f"{largest:.0f}")
    return values.fill_nan(None).cast(pl.Int64)


def unify(parts: Sequence[pl.Series]) -> pl.Series:
    """Concatenates parts of a column that may differ in type.

    Integers of several types remain integers; floats that are whole numbers become integers beside
    integers; numbers beside text become text, and parts without values take the others' type.

    Raises:
      ValueError, polars' errors: the types have nothing in common.
    """
    known = [part for part in parts if part.null_count() < len(part)]
    types = {part.dtype for part in known}
    if not types:
        types = {part.dtype for part in parts if part.dtype != pl.Null} or {pl.String()}
        types = {next(iter(sorted(types, key=str)))}
    if len(types) > 1 and all(kind.is_numeric() for kind in types):
        parts = [_whole_or_same(part) for part in parts]
        types = {part.dtype for part in parts if part.null_count() < len(part)}
    if all(isinstance(kind, pl.List | pl.Array) for kind in types) and len(types) > 1:
        return pl.concat(list(parts), how="vertical_relaxed")
    if len(types) == 1:
        target = next(iter(types))
    elif all(kind.is_integer() for kind in types):
        target = _integer_type(known)
    elif all(kind.is_numeric() for kind in types):
        target = pl.Float64()
    elif all(kind.is_numeric() or kind == pl.String for kind in types):
        target = pl.String()
        parts = [_whole_or_same(part) if part.dtype.is_float() else part for part in parts]
    else:
        target = pl.concat([part.clear() for part in known], how="vertical").dtype
    if target == pl.Int128:
        target = _integer_type(known)
    return pl.concat([part.cast(target) for part in parts], rechunk=False)


def common_type(types: Iterable[pl.DataType]) -> pl.DataType:
    """The type in which ids or times of several columns are compared; text if no other fits."""
    distinct = set(types)
    if len(distinct) == 1:
        return distinct.pop()
    if all(dtype.is_integer() for dtype in distinct) and pl.UInt64 not in distinct:
        return pl.Int64()
    if all(dtype.is_numeric() for dtype in distinct) and pl.Float64 in distinct:
        return pl.Float64()
    return pl.String()


def _whole_or_same(part: pl.Series) -> pl.Series:
    if not part.dtype.is_float():
        return part
    try:
        whole = whole_numbers(part)
    except OverflowError as error:
        raise ValueError(
            f"{error} is a float beside whole numbers, and beyond 2⁵³ floats are not exact"
        ) from error
    return part if whole is None else whole


def _integer_type(parts: Sequence[pl.Series]) -> pl.DataType:
    """The type that holds whole numbers of several types: int64, uint64, or text."""
    low, high = (
        limit(int(str(getattr(part, limit.__name__)() or 0)) for part in parts)
        for limit in (min, max)
    )
    if high < 2**63:
        return pl.Int64()
    return pl.UInt64() if low >= 0 and high < 2**64 else pl.String()
