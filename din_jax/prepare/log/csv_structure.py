"""Finds the records and values of a block of CSV, and what breaks its rules, on all its bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NEWLINE, RETURN = 10, 13
_MINUS, _ZERO = 45, 48


class Structure:
    """Where the records and values of a block begin and end.

    Args:
      data: whole lines or not, from the beginning of a record on.
      delimiter, quote: single bytes; without quotes b"".

    Attributes:
      end: where the last whole record ends.
    """

    def __init__(self, data: bytes, delimiter: bytes, quote: bytes):
        self._data = np.frombuffer(data, np.uint8)
        is_end, is_delimiter = self._data == NEWLINE, self._data == delimiter[0]
        is_return = self._data == RETURN if b"\r" in data else None
        self._quotes = np.empty(0, np.int64)
        self._delimiter = delimiter[0]
        if quote and quote in data:
            is_quote = self._data == quote[0]
            self._quotes = np.flatnonzero(is_quote)
            outside = (np.cumsum(is_quote, dtype=np.uint8) & 1) == 0
            is_end &= outside
            is_delimiter &= outside
            if is_return is not None:
                is_return &= outside
        self._quote = quote[0] if quote else None
        self._ends = np.flatnonzero(is_end)
        self.end = int(self._ends[-1]) + 1 if len(self._ends) else 0
        self._delimiters = np.flatnonzero(is_delimiter[: self.end])
        self._returns = np.flatnonzero(is_return[: self.end]) if is_return is not None else None
        self._begins = np.concatenate([[0], self._ends[:-1] + 1]).astype(np.int64)[
            : len(self._ends)
        ]
        length = self._ends - self._begins
        self._empty = (length == 0) | ((length == 1) & (self._data[self._begins] == RETURN))

    def fault(self, *, at_end: bool) -> int | None:
        """The place of the first character that breaks the rules, or None.

        It is a quote that does not enclose a whole value, or a carriage return outside quotes that
        ends no line; `at_end`: or the quote that is open at the end.
        """
        places = [self._quotes[-1:]] if at_end and len(self._quotes) % 2 else []
        if self._returns is not None:
            places.append(self._returns[self._data[self._returns + 1] != NEWLINE])
        if len(self._quotes):
            opening, closing = self._quotes[::2], self._quotes[1::2]
            allowed = np.zeros(256, bool)
            allowed[[self._delimiter, NEWLINE, self._quote or 0]] = True
            before = np.where(opening > 0, self._data[opening - 1], NEWLINE)
            after_place = closing + 1
            inside = after_place < len(self._data)
            after = np.where(inside, self._data[np.where(inside, after_place, 0)], NEWLINE)
            places.append(opening[~allowed[before]])
            allowed[RETURN] = True
            places.append(closing[~allowed[after]])
        return min((int(p[0]) for p in places if len(p)), default=None)

    def begin_of_record(self, place: int) -> int:
        """Where the record that holds a place begins."""
        number = int(np.searchsorted(self._ends, place))
        return int(self._ends[number - 1]) + 1 if number else 0

    def wrong_length(self, columns: int) -> tuple[int, int] | None:
        """(offset, values) of the first record that has not `columns` values, or None."""
        begins, ends = self.records()
        per_record = columns - 1
        if len(self._delimiters) == per_record * len(ends):
            if not per_record:
                return None
            delimiters = self._delimiters.reshape(-1, per_record)
            if (delimiters[:, 0] >= begins).all() and (delimiters[:, -1] < ends).all():
                return None
        counts = np.searchsorted(self._delimiters, ends) - np.searchsorted(self._delimiters, begins)
        wrong = np.flatnonzero(counts != per_record)
        return int(begins[wrong[0]]), int(counts[wrong[0]]) + 1

    def usual(self, tried: Sequence[int], columns: int) -> list[int]:
        """Which columns have no value that begins like 007, -0 or +1; none if there are quotes."""
        if not tried or len(self._quotes) or self.has_empty:
            return []
        delimiters = self._delimiters.reshape(len(self._begins), columns - 1)
        data = self._data
        # Polars passes over spaces, and reads +1 as 1.
        allowed = np.zeros(256, bool)
        allowed[[*range(_ZERO, _ZERO + 10), _MINUS, self._delimiter, NEWLINE, RETURN]] = True
        found = []
        for column in tried:
            first = self._begins if column == 0 else delimiters[:, column - 1] + 1
            character = data[first]
            # After each of these there is one more character, the line's end at least.
            after_zero = data[first[character == _ZERO] + 1]
            after_minus = data[first[character == _MINUS] + 1]
            if not (
                not allowed[character].all()
                or ((after_zero >= _ZERO) & (after_zero <= _ZERO + 9)).any()
                or (after_minus == _ZERO).any()
            ):
                found.append(column)
        return found

    def records(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the records begin and end, without empty lines."""
        full = ~self._empty
        return self._begins[full], self._ends[full] + 1

    @property
    def has_empty(self) -> bool:
        """Whether a line is empty."""
        return bool(self._empty.any())
