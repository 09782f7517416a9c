"""CSV read in blocks, against Python's csv module and a parser of RFC 4180 by single characters."""

import csv
import gzip
import io
import tempfile
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import assume, example, given, settings, strategies as st

from din_jax.errors import DinError
from din_jax.prepare.log import csv_blocks, file_text
from din_jax.prepare.log.csv_blocks import Dialect

CHARACTERS = ["a", "é", "漢", "0", " ", "\\", "#", "\x00", "\u2028", "\ufeff"]
# Columns of whole numbers, among them what is none, or not written as one.
NUMBERS = ["7", "0", "-3", "12", "", str(2**63 - 1)]
ODD_NUMBERS = [
    "07",
    "-0",
    "-01",
    "+1",
    " 7",
    "7 ",
    "\t7",
    "1.0",
    "1e3",
    str(2**63),
    "1_0",
    "-",
    "7\x00",
]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030")


def read(path, dialect, blocks=(1 << 16, 1 << 25)):
    """(header, [(line, values)]); an empty value is None."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_text, "_FIRST_BYTES", blocks[0])
        patch.setattr(file_text, "_BLOCK_BYTES", blocks[1])
        names = csv_blocks.header(path, dialect)
        rows = []
        for block in csv_blocks.blocks(path, dialect, names):
            text = block.frame.select(pl.all().cast(pl.String))  # some are numbers
            rows += zip(block.lines().tolist(), map(list, text.rows()), strict=True)
        return names, rows


def parsed(text, delimiter, quote):
    """([(line, values)] of a text's records, the line of the one that breaks RFC 4180 or None).

    Lines end with \\n or \\r\\n; empty lines are passed over.
    """
    records, line, begin = [], 1, 1
    values, value, state = [], "", "start"  # start | plain | inside | closed
    i = 0
    while i <= len(text):
        c = text[i] if i < len(text) else "end"
        if state == "inside":
            if c == "end":
                return records, begin
            if c == quote and text[i + 1 : i + 2] == quote:
                value, i = value + quote, i + 1
            elif c == quote:
                state = "closed"
            else:
                value += c
                line += c == "\n"
        elif c in ("\n", "end") or text[i : i + 2] == "\r\n" or text[i:] == "\r":
            if values or value or state != "start":
                records.append((begin, [*values, value]))
            if c == "end":
                return records, None
            i += c == "\r"
            line += 1
            values, value, state, begin = [], "", "start", line
        elif c == delimiter:
            values, value, state = [*values, value], "", "start"
        elif c == "\r" or state == "closed" or (c == quote and state == "plain"):
            return records, begin
        elif c == quote:
            state = "inside"
        else:
            value, state = value + c, "plain"
        i += 1
    return records, None


@st.composite
def files(draw):
    """(text, dialect): a table in a random dialect, with all that may stand in quotes."""
    delimiter = draw(st.sampled_from(",;\t|\x01"))
    quote = draw(st.sampled_from(['"', "'", ""]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    characters = [*CHARACTERS, *([quote, delimiter, "\n", "\r\n", "\r"] if quote else [])]
    value = st.lists(st.sampled_from(characters), max_size=4).map("".join)
    if draw(st.booleans()):
        odd = draw(st.lists(st.sampled_from(ODD_NUMBERS), max_size=1))
        odd = [number for number in odd if delimiter not in number]
        value = st.sampled_from([*NUMBERS, *odd])
    columns = draw(st.integers(1, 3))
    table = draw(st.lists(st.lists(value, min_size=columns, max_size=columns), max_size=6))
    has_header = draw(st.booleans())
    names = [f"c{i}" + draw(st.sampled_from(["", " x"])) for i in range(columns)]

    def written(value):
        must = quote and any(c in value for c in (quote, delimiter, "\n", "\r"))
        if must or (quote and draw(st.booleans())):
            return quote + value.replace(quote, 2 * quote) + quote
        return value

    lines = []
    for record in [names] * has_header + table:
        lines += [""] * draw(st.integers(0, 1))
        line = delimiter.join(map(written, record))
        lines.append(line or quote * 2 or "x")
    text = end.join(lines) + draw(st.sampled_from([end, "", 2 * end]))
    dialect = Dialect(delimiter, quote, columns=None if has_header else tuple(names))
    return text.lstrip("\ufeff"), dialect  # at the beginning it is no value's


block_sizes = st.tuples(st.sampled_from([1, 3, 8, 1 << 16]), st.sampled_from([1, 2, 7, 1 << 20]))


@settings(max_examples=50, deadline=None)
@given(files(), block_sizes, st.sampled_from(ENCODINGS))
@example(("c0,c1\n\ufeffa,b\n", Dialect()), (6, 1 << 20), "utf-8")
@example(("c0,c1\n1,7\n2, 7\n", Dialect()), (10, 1 << 20), "utf-8")
@example(("c0\n1\n7 \n", Dialect()), (5, 1), "utf-8")
@example(("\n\nc0\nx\n", Dialect()), (1, 1), "utf-8")
def test_what_is_read_is_what_the_csv_module_reads(file, blocks, encoding):
    text, dialect = file
    expected = [
        row
        for row in csv.reader(
            (line.decode() for line in io.BytesIO(text.encode())),
            delimiter=dialect.delimiter,
            quotechar=dialect.quote or None,
            quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
            strict=True,
        )
        if row
    ]
    oracle, broken = parsed(text, dialect.delimiter, dialect.quote)
    assert broken is None
    assert [row for _, row in oracle] == expected
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        path.write_bytes(text.encode(encoding))
        dialect = dialect._replace(encoding=encoding)
        if not expected and dialect.columns is None:
            with pytest.raises(DinError, match="the file is empty"):
                read(path, dialect, blocks)
            return
        names, rows = read(path, dialect, blocks)
    if dialect.columns is None:
        (_, header), *oracle = oracle
        assert names == header
    assert rows == [(line, [value or None for value in row]) for line, row in oracle]


@settings(max_examples=50, deadline=None)
@given(files(), block_sizes, st.data())
def test_what_is_damaged_is_an_error_that_names_the_line(file, blocks, data):
    text, dialect = file
    place = data.draw(st.integers(0, len(text)))
    if data.draw(st.booleans()):
        new = st.sampled_from([dialect.quote, dialect.delimiter, "\r", "x", "\n"])
        damaged = text[:place] + data.draw(new) + text[place:]
    else:
        damaged = text[:place] + text[place + 1 :]
    oracle, broken = parsed(damaged.removeprefix("\ufeff"), dialect.delimiter, dialect.quote)
    names = oracle[0][1] if oracle else []
    assume(len(set(names)) == len(names))  # names that stand twice are refused elsewhere
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        path.write_text(damaged, newline="")
        columns = dialect.columns
        names = None
        try:
            names, rows = read(path, dialect, blocks)
        except DinError as error:
            message = str(error)
    header, body = (columns, oracle) if columns else (oracle[0][1] if oracle else None, oracle[1:])
    wrong = [line for line, row in body if header and len(row) != len(header)]
    if broken is None and not wrong and names is not None:
        assert rows == [(line, [value or None for value in row]) for line, row in body]
        return
    assert names is None
    if "the first line has" in message:
        assert columns
    elif "the file is empty" in message:
        assert not oracle
    else:
        assert f", line {min([*wrong, *([broken] if broken else [])])}: " in message


def written(tmp_path, content, name="table.csv"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


ESCAPED = Dialect("\t", "", "\\")


@pytest.mark.parametrize(
    ("dialect", "text", "rows"),
    [
        # Values like MySQL's SELECT … INTO OUTFILE: \N is missing, what is escaped is itself.
        (ESCAPED, "a\tb\n\\N\tx\n", [["", "x"]]),
        (ESCAPED, "a\tb\nx\t\\N\n\\N\t\\N\n", [["x", ""], ["", ""]]),
        (ESCAPED, "a\tb\n1\\\t2\t3\\\n4\n", [["1\t2", "3\n4"]]),
        (ESCAPED, "a\tb\n\\\\N\tN\n", [["\\N", "N"]]),
        (Dialect(escape="\\"), 'a,b\n"5\\" disc","x, y"\n', [['5" disc', "x, y"]]),
        (Dialect(escape="\\"), 'a,b\n"5"" disc",\\,\n', [['5" disc', ","]]),
        (Dialect(escape="\\"), 'a,b\n5" disc,""\n', [['5" disc', ""]]),
        # Quoted as well, as MySQL reads it; but not within a value.
        (Dialect(escape="\\"), 'a,b\n"\\N","\\\\N"\n', [["", "\\N"]]),
        (Dialect(escape="\\"), 'a,b\n"x,\\N,y",\\\\\\N\n', [["x,N,y", "\\N"]]),
        (ESCAPED, "a\tb\nx\\N\t\\\\\n", [["xN", "\\"]]),
        # A record of several blocks of the escaped reader, and of more than csv's own limit.
        (Dialect(escape="\\"), "a,b\n" + f"1,{'x' * 150_000}\n" * 3, [["1", "x" * 150_000]] * 3),
        (Dialect(), "a,b\n" + f"1,{'x' * 150_000}\n" * 2, [["1", "x" * 150_000]] * 2),
    ],
)
def test_escapes_and_long_values(tmp_path, monkeypatch, dialect, text, rows):
    monkeypatch.setattr(csv_blocks, "_ESCAPED_ROWS", 2)
    got = [row for _, row in read(written(tmp_path, text), dialect)[1]]
    assert got == [[value or None for value in row] for row in rows]


TEXT = "a,b\n1,2\n" * 1000


@pytest.mark.parametrize(
    "compressed",
    [
        gzip.compress(TEXT.encode()),
        zstandard.compress(TEXT.encode()),
        b"".join(zstandard.compress(part.encode()) for part in (TEXT[:500], "", TEXT[500:])),
        gzip.compress(TEXT[:500].encode()) + gzip.compress(TEXT[500:].encode()),
    ],
    ids=["gzip", "zstandard", "frames", "members"],
)
def test_compressed_files_are_read_whole_or_not_at_all(tmp_path, compressed):
    for blocks in ((1 << 16, 1 << 25), (5, 100)):
        assert len(read(written(tmp_path, compressed), Dialect(), blocks)[1]) == 1999
    with pytest.raises(DinError, match="truncated or damaged"):
        read(written(tmp_path, compressed[:-7]), Dialect())


@pytest.mark.parametrize(
    ("content", "dialect", "message"),
    [
        ("", Dialect(), "the file is empty; expected a first line with the names"),
        ("\n\r\n", Dialect(), "the file is empty"),
        ("a,b\r1,2\r", Dialect(), "line 1: a carriage return ends no line.*old Macs"),
        ("a,b\r\n1,2\r\n1\r,2\r\n", Dialect(), "line 3: a carriage return"),
        ("a,b\n1,2\n", Dialect(columns=("a", "b")), "first line has the names of the columns"),
        ("1,2\n", Dialect(columns=("a", "b", "c")), "has 2 values, but columns names 3"),
        ('a,b\n1,"x\ny\n' + "z\n" * 99, Dialect(), "line 2: a quote does not enclose"),
        ('a,b\n1,x" y\n', Dialect(), r"line 2: a quote .*'1,x\" y'.*quote = \"\""),
        ('a,b\n1,"x\\" y"\n', Dialect(), r"line 2: .*if a \\ stands before .*escape = "),
        ('a,b\n1,"x\n', Dialect(escape="\\"), "line 2: a quote does not enclose"),
        ("a,b\n1,2,3\n", Dialect(escape="\\"), "line 2: 3 values, but the header has 2"),
        ("a,b\n1\n", Dialect(columns=None), "line 2: 1 values, but the header has 2"),
        (
            "a,b\n1,2\né,1\n".encode("cp1252"),
            Dialect(),
            "line 3 is not UTF-8.*'cp1252' reads 'é,1'",
        ),
        ("a,b\n1,类目\n".encode("gbk"), Dialect(), "line 2 is not UTF-8.*'gb18030' reads '1,类目'"),
        ("a,b\n1,2\n".encode("utf-16"), Dialect(), 'begins like UTF-16.*encoding = "utf-16"'),
        ("a,b\n1,2\n".encode("utf-16-le"), Dialect(encoding="utf-16"), "is not UTF-16.*utf-16-le"),
        ("a,b\n1,类\n".encode(), Dialect(encoding="ascii"), None),
        (b"a,b\n1,\xe7\xb1", Dialect(), "line 2 is not UTF-8"),  # cut off inside a character
    ],
)
def test_what_is_no_table_is_one_clear_error(tmp_path, content, dialect, message):
    path = written(tmp_path, content)
    if message is None:
        read(path, dialect)
        return
    with pytest.raises(DinError, match=message):
        read(path, dialect)
    with pytest.raises(DinError):  # blocks that end inside the line have fewer hints
        read(path, dialect, (4, 3))


def test_a_quote_that_nothing_closes_does_not_gather_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_blocks, "_LONGEST_RECORD", 1000)
    path = written(tmp_path, 'a,b\n1,2\n1,"x\n' + "1,2\n" * 9999 + '1,x"\n')
    with pytest.raises(DinError, match="line 3: a quote does not enclose"):
        read(path, Dialect(), (64, 64))
