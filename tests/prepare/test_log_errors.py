"""Errors of a log's preparation: each names the file and what to change, and leaves no store."""

import gzip
import shutil

import polars as pl
import pytest
from log_oracle import SPEC, VIEWS, tables_of_a_log, write

from din_jax.errors import DinError
from din_jax.prepare import log


def spec_with(old, new):
    def change(folder):
        text = (folder / "spec.toml").read_text()
        assert old in text
        (folder / "spec.toml").write_text(text.replace(old, new, 1))

    return change


def views_with(old, new):
    def change(folder):
        assert old in VIEWS
        with (folder / "spec.toml").open("a") as spec:
            spec.write(VIEWS.replace(old, new))

    return change


def frame_with(name, *expressions, **columns):
    def change(folder):
        path = folder / f"{name}.parquet"
        pl.read_parquet(path).with_columns(*expressions, **columns).write_parquet(path)

    return change


def users_as(content, name="users.csv", delimiter=""):
    def change(folder):
        spec_with('"users.parquet"', f'"{name}"{delimiter}')(folder)
        (folder / name).write_bytes(content)

    return change


def numbers_as(content):
    """The users' ages are numbers."""

    def change(folder):
        users_as(content)(folder)
        spec_with("age.unknown_share = 0", "")(folder)
        spec_with('columns = ["age"]', 'columns = {age = {numeric = "none"}}')(folder)

    return change


def value_at(column, row, value, otherwise=None):
    at_row = pl.int_range(pl.len()) == row
    return (
        pl.when(at_row)
        .then(value)
        .otherwise(column if otherwise is None else otherwise)
        .alias(column)
    )


@pytest.fixture(scope="module")
def valid_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid")
    write(folder, tables_of_a_log(), SPEC)
    return folder


NOON = "2024-05-01 12:00:00"
QUOTED = b'user,note,age\n1,"two\nlines, with a comma",2\n'  # lines 1 to 3 of a file


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # The spec.
        (lambda f: (f / "spec.toml").unlink(), r"spec.toml: no such file; expected the spec of a"),
        (
            lambda f: [(f / "spec.toml").unlink(), (f / "spec.toml").mkdir()],
            r"spec.toml: is a folder; expected the spec of a log, a TOML file",
        ),
        (spec_with('item = "film"', 'item = "user"'), r"user and item are both 'user'; expected"),
        (spec_with('label = "click"', 'label = "at"'), r"\[impressions\] label and time are both"),
        (
            spec_with('valid_from = "since"', 'valid_from = "film"'),
            r"\[items\] item and valid_from are both 'film'",
        ),
        (
            spec_with('["tab", ', '["history", "tab", '),
            r"spec.toml: \[impressions\] has a field 'history', .* sequence of the clicked impr",
        ),
        (spec_with("[users]", "[users"), r"spec.toml: not TOML: .*line 16"),
        (spec_with("[users]", "[user]"), r"unknown section 'user' \(did you mean 'users'\?\)"),
        (spec_with("label", "lable"), r"\[impressions\] unknown key 'lable' \(did you mean 'label"),
        (spec_with('label = "click"', ""), r"\[impressions\] has no 'label'; expected the name of"),
        (spec_with('"click"', "3"), r"\[impressions\] label = 3; expected .* in quotes"),
        (spec_with('["age"]', '"age"'), r"\[users\] columns = 'age'; expected a list of columns"),
        (
            spec_with('["age"]', '{age = {seperator = "|"}}'),
            r"users.columns.age\] unknown key 'sep",
        ),
        (
            spec_with('["age"]', '["my age"]'),
            r"'my age' can't be a field's name.*NAME = \{column =",
        ),
        (
            spec_with('["age"]', '["age", "tab"]'),
            r"\[users\] has a field 'tab', a name that a field of",
        ),
        (spec_with('["age"]', "[]"), r"\[users\] has no 'columns'"),
        (spec_with('["tab", ', '["click", "tab", '), r"has the label, 'click', as a field"),
        (
            spec_with("item.unk", "itm.unk"),
            r"\[tables.itm\] names no embedding table \(did you mean 'item'",
        ),
        (spec_with("price.buckets = 4", "price.buckets = 1"), r"buckets = 1; .* number from 2 on"),
        (spec_with("item.unknown_share = 0", "item.unknown_share = 2"), r"= 2; expected a share"),
        (
            spec_with("item.unknown_share = 0", "item.buckets = 9"),
            r"has buckets, but the table has ids",
        ),
        (spec_with('"time"\nv', '"tim"\nv'), r"by = 'tim'; .*did you mean 'time'"),
        (spec_with("0.15", "0.75"), r"the shares leave nothing to train on"),
        (spec_with("validation = 0.15", ""), r"\[split\] has no 'validation'; expected the time"),
        (
            spec_with("0.25", "15"),
            r"validation = 0.15, test = 15; give two shares or two points in time. A share lies",
        ),
        (spec_with("0.15", "'15%'"), r"validation = '15%'; expected .* or a share such as 0.1"),
        (
            spec_with("0.15\ntest = 0.25", "50\ntest = 30"),
            r"begins at 50, not before test at 30. A share lies between 0 and 1",
        ),
        (
            spec_with("0.15\ntest = 0.25", "2024-01-01\ntest = 2024-01-02"),
            r"\[split\] .* 2024-01-.*of \[impressions\], 'at', are numbers of an unknown",
        ),
        (
            spec_with("0.15\ntest = 0.25", "50\ntest = 99"),
            r"without impressions: .*test has 0; .* A share lies between 0 and 1",
        ),
        (spec_with('by = "time"', 'by = "column"'), r"\[split\] has no 'train'"),
        # The tables.
        (
            lambda f: (f / "films.parquet").unlink(),
            r"films.parquet: no such file or folder.*\[items",
        ),
        (lambda f: (f / "films.parquet").write_text("no"), r"films.parquet: cannot be read \("),
        (spec_with('"click"', '"clck"'), r"no column 'clck' \(label\) \(did you mean 'click'\?\)"),
        (
            frame_with("impressions", value_at("click", 6, 2)),
            r"impressions.parquet, row 7: column 'click' of \[impressions\] is 2; expected a label",
        ),
        (
            frame_with("impressions", value_at("click", 6, None)),
            r"1 of 239 samples of train have no label, 'click' is empty, the first of user 0",
        ),
        (
            frame_with(
                "impressions",
                click=pl.when(pl.col("click") == 1).then(pl.lit("yes")).otherwise(pl.lit("no")),
            ),
            r"'click' .* expected a label, 0 or 1. Write .* as 0 and 1; it has \d+ × '(no|yes)'",
        ),
        (frame_with("impressions", value_at("user", 0, None)), r"row 1: column 'user' .* is empty"),
        (frame_with("impressions", value_at("film", 3, None)), r"row 4: column 'film' .* is empty"),
        (frame_with("impressions", value_at("at", 9, None)), r"row 10: column 'at' .* is empty"),
        (
            frame_with("impressions", pl.col("at") / 0),
            r"row 1: column 'at' .* is inf; expected a time",
        ),
        (
            frame_with("impressions", pl.col("user") / 2),
            r"'user' .* has type Float64; expected ids",
        ),
        (
            frame_with("impressions", at=pl.lit("soon")),
            r"is 'soon'; expected a time.* Write the column so \(\d+ of",
        ),
        (
            frame_with("impressions", value_at("at", 5, pl.lit(NOON), pl.lit(f"{NOON}Z"))),
            r"row 6: column 'at' .* is '2024-05-01 12:00:00'; expected a zone such as Z or \+02:00",
        ),
        (
            frame_with("impressions", price=pl.lit("dear")),
            r"'price' .* is 'dear'; expected a number",
        ),
        (
            frame_with("impressions", tab=pl.col("price")),
            r"'tab' .* has type Float64; expected ids.*give their table buckets",
        ),
        (
            frame_with("impressions", at=pl.from_epoch("at", time_unit="d")),
            r"times are numbers in some tables and dates in others: \[impressions\] Datetime",
        ),
        (
            frame_with("films", since=pl.lit(1)),
            r"\[items\] has \d different rows of film = \d+ and",
        ),
        (
            frame_with("users", user=pl.lit(1)),
            r"\[users\] has 3 different rows of user = 1 \(1 such",
        ),
        (
            lambda f: pl.DataFrame({"user": [], "age": []}).write_parquet(f / "users.parquet"),
            "no rows",
        ),
        (
            frame_with("users", user=pl.format("u{}", "user")),
            r"users.parquet: no user of \[users\], user = 'u",
        ),
        # CSV.
        (
            users_as(b"user,age\n1,2\n2,3,4\n"),
            r"users.csv, line 3: 3 values, but the header has 2; put values that contain ',' in",
        ),
        (
            users_as(b"user,age\n1,2\n2\n3,4\n"),
            r"users.csv, line 3: 1 values, but the header has 2",
        ),
        (
            users_as(b'user,note,age\n1,"x, y"\n'),
            r"users.csv, line 2: 2 values, but the header has 3; write",
        ),
        (users_as(b"user,age\n1,2\n\n2\n"), r"users.csv, line 4: 1 values, but the header has 2"),
        (numbers_as(QUOTED + b"2,y,x\n"), r"users.csv, line 4: column 'age' of \[users\] is 'x'"),
        (
            numbers_as(b"\n\nuser,age\n1,2\n,\n2,x\n"),
            r"users.csv, line 6: column 'age' of \[users\] is 'x'; expected a number",
        ),
        (users_as(b"user,age\n\n,2\n"), r"users.csv, line 3: column 'user' of \[users\] is empty"),
        (
            users_as(b"user,age,user\n1,2,1\n"),
            r"users.csv: the header has 'user' \(user of \[users\]\) 2 times; expected it once",
        ),
        (
            users_as(b"user;age\n1;2\n"),
            r"no column 'age' .* with delimiter = \",\": user;age; .* needs delimiter = \";\"",
        ),
        (users_as(b"user\tage\n1\t2\n"), r"by its header it needs delimiter = \"\\t\""),
        (users_as(b'"user"|"age"\n"1"|"2"\n'), r"by its header it needs delimiter = \"\|\""),
        (
            users_as(b"user,age\n1,2\n", delimiter='\ndelimiter = ";"'),
            r"with delimiter = \";\": user,age; by its header it needs delimiter = \",\"",
        ),
        (
            users_as(b"user,age\n1,2\n", name="users.tsv"),
            r"with delimiter = \"\\t\": user,age; by its header it needs delimiter = \",\"",
        ),
        (
            users_as("user,age\n1,2\n2,né\n".encode("latin-1")),
            r"users.csv, line 3 is not UTF-8, .* encoding = 'cp1252' reads '2,né'",
        ),
        (
            users_as(gzip.compress(b"user,age\n1,2\n" * 99)[:-9], name="users.csv.gz"),
            r"users.csv.gz: truncated or damaged",
        ),
        # A table of behaviours.
        (views_with('time = "at"\n', ""), r"\[behaviours\] has no 'time': .*prior = true"),
        (
            views_with('time = "at"\n', 'time = "at"\nprior = true\n'),
            r"has both time and prior = true",
        ),
        (
            views_with('time = "at"\n', "prior = true\n"),
            r"\[items\] has valid_from, but the behaviours of",
        ),
        (
            views_with('time = "at"\n', 'time = "at"\nad = ["shop"]\n'),
            r"ad has 'shop', .*its fields are: category, tags",
        ),
        (
            views_with('item = "film"', 'item = "user"'),
            r"\[behaviours\] user and item are both 'user'",
        ),
        (
            views_with("[behaviours]", "[behaviours.user_id]"),
            r"'user_id' can't be a sequence's name",
        ),
        (
            views_with("[behaviours]", "[behaviours.tab]"),
            r"a field 'tab', a name that the sequence of \[behaviours.tab",
        ),
    ],
)
def test_bad_input_is_one_clear_error_and_no_store(tmp_path, valid_folder, damage, message):
    shutil.copytree(valid_folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises(DinError, match=message):
        log.prepare(tmp_path / "spec.toml", tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir() if "store" in p.name] == []
