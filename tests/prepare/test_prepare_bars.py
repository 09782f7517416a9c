"""BARS' layout on files small enough to count by hand."""

import argparse
import csv

import numpy as np
import pytest
from stores_as_requests import assert_requests_are_batches

from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError
from din_jax.prepare import bars

HEADER = list(bars.COLUMNS)
TRAIN = [
    ("1", "7", "10", "c1", "", ""),
    ("0", "7", "11", "c2", "10", "c1"),
    ("1", "9", "12", "c2", "10^11^10", "c1^c2^c1"),
]
TEST = [
    ("1", "9", "10", "c1", "12^11", "c2^c2"),
    ("0", "8", "99", "c9", "98^10", "c9^c1"),  # ids that training lacks
]
VALID = [("0", "7", "12", "c2", "11", "c2")]


def write(folder, **files):
    for name, rows in ({"train": TRAIN, "test": TEST} | files).items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])


def prepare(folder, valid=False, **options):
    valid_file = folder / "valid.csv" if valid else None
    return bars.prepare(
        folder / "train.csv", folder / "test.csv", folder / "store", valid=valid_file, **options
    )


def samples_of(store, split):
    """The rows of a split as the file has them; unknown ids are None."""
    names = {t.name: store.vocabulary(t.name).ids for t in store.schema.tables}
    start, end = (store.column(f"sequences/history.{e}") for e in ("start", "end"))
    return [
        (
            int(store.column("samples/label")[i]),
            *(
                names[table][int(store.column(f"fields/{field}")[i])]
                for field, table in (
                    ("user_id", "user"),
                    ("item", "item"),
                    ("category", "category"),
                )
            ),
            *(
                [
                    names[name][int(row)]
                    for row in store.column(f"events/history/{name}")[int(start[i]) : int(end[i])]
                ]
                for name in ("item", "category")
            ),
        )
        for i in store.split(split)
    ]


def as_read(rows, unknown=()):
    def known(value):
        return None if value in unknown else value

    return [
        (int(label), known(user), known(item), known(category),
         *([known(v) for v in text.split("^")] if text else [] for text in (items, categories)))
        for label, user, item, category, items, categories in rows
    ]  # fmt: skip


UNKNOWN = ("8", "98", "99", "c9")


def test_samples_are_those_of_the_files(tmp_path):
    write(tmp_path, valid=VALID)
    prepare(tmp_path, valid=True)
    store = Store(tmp_path / "store")
    assert samples_of(store, "train") == as_read(TRAIN)
    assert samples_of(store, "validation") == as_read(VALID)
    assert samples_of(store, "test") == as_read(TEST, UNKNOWN)
    assert "model_selection" not in store.origin
    user = store.column("samples/user").tolist()  # 7, 7, 9; 7; 9, 8
    assert [user[0] == u for u in user] == [True, True, False, True, False, False]
    assert user[2] == user[4] != user[5]


def test_without_a_validation_file_validation_is_test_and_says_so(tmp_path):
    write(tmp_path)
    prepare(tmp_path)
    store = Store(tmp_path / "store")
    assert samples_of(store, "validation") == samples_of(store, "test") == as_read(TEST, UNKNOWN)
    assert len(store) == len(TRAIN) + 2 * len(TEST)
    # The histories are stored once.
    assert len(store.column("events/history/item")) == 4 + 4
    assert store.origin["model_selection"].startswith("ON TEST")


def test_an_ad_that_is_its_own_last_behaviour_is_noted(tmp_path):
    last = [(str(i % 2), "7", "10", "c1", f"12^{10 + i % 2}", "c2^c1") for i in range(40)]
    write(tmp_path, train=TRAIN + last)
    origin = prepare(tmp_path)
    # Of label 0: 20 of 22, of train and test together; validation is test, and counts once. The two
    # others are an ad that is not in its history and an unknown one, which is equal to nothing.
    assert origin["ad_in_own_history"] == (
        "label 1 0.0%, label 0 90.9%; last behaviour: label 1 0.0%, label 0 90.9%"
    )
    (note,) = origin["notes"]
    assert note.startswith("the ad is the last behaviour of its own history in 0.0% of the samples")


def test_the_command_warns_that_selection_is_on_test(tmp_path, capsys):
    write(tmp_path, valid=VALID)
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    bars.add_arguments(parser)
    files = [f"--{name}={tmp_path / name}.csv" for name in ("train", "test", "valid")]
    bars.run(parser.parse_args([*files, "--out", str(tmp_path / "a")]))
    assert "WARNING" not in capsys.readouterr().err
    bars.run(parser.parse_args([*files[:2], "--out", str(tmp_path / "b")]))
    assert "selected on test" in capsys.readouterr().err


def test_vocabularies_are_of_training_with_its_counts(tmp_path):
    write(tmp_path)
    prepare(tmp_path)
    store = Store(tmp_path / "store")
    vocabularies = {t.name: store.vocabulary(t.name) for t in store.schema.tables}
    assert {name: v.ids.to_list() for name, v in vocabularies.items()} == {
        "item": [None, "10", "11", "12"],
        "category": [None, "c1", "c2"],
        "user": [None, "7", "9"],
    }
    assert vocabularies["item"].counts.tolist() == [0, 1 + 3, 1 + 1, 1]
    assert vocabularies["category"].counts.tolist() == [0, 1 + 3, 2 + 1]
    assert vocabularies["user"].counts.tolist() == [0, 2, 1]
    assert store.origin["test_unknown_goods"] == 1


def test_an_id_is_known_if_ads_or_histories_have_it_often_enough(tmp_path):
    write(tmp_path)
    prepare(tmp_path, min_count=2)
    store = Store(tmp_path / "store")
    # 10 is three times in histories; 11 once in an ad and once in a history.
    assert store.vocabulary("item").ids.to_list() == [None, "10"]
    assert store.vocabulary("category").ids.to_list() == [None, "c1", "c2"]


def test_parts_of_a_file_make_the_same_store(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(100):
        history = rng.integers(30, size=rng.integers(5)).tolist()
        rows.append(
            (str(rng.integers(2)), str(rng.integers(9)), str(rng.integers(30)), "c",
             "^".join(map(str, history)), "^".join("c" for _ in history))
        )  # fmt: skip
    write(tmp_path, train=rows)
    prepare(tmp_path)
    whole = Store(tmp_path / "store")
    assert samples_of(whole, "train") == as_read(rows)
    monkeypatch.setattr(bars, "_ROWS_AT_ONCE", 7)
    bars.prepare(tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "again")
    assert Store(tmp_path / "again").fingerprint == whole.fingerprint
    assert [len(whole.split(s)) for s in SPLITS] == [100, 2, 2]


def spoilt(rows, at, column, value):
    line = list(rows[at])
    line[column] = value
    return [*rows[:at], tuple(line), *rows[at + 1 :]]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            spoilt(TRAIN, 2, 5, "c1^c2"),
            r"train.csv, line 4: .* differ in length: 3 goods and 2 categories",
        ),
        (
            spoilt(TRAIN, 0, 4, "10"),
            r"train.csv, line 2: .* differ in length: 1 goods and 0 categories",
        ),
        (spoilt(TRAIN, 1, 0, "2"), r"train.csv, line 3: the label is not 0 or 1; found '2,7,11"),
        (spoilt(TRAIN, 1, 0, "x"), r"line 3: the label is not 0 or 1"),
        (spoilt(TRAIN, 1, 2, ""), r"line 3: item_id is missing"),
        (spoilt(TRAIN, 2, 4, "10^^10"), r"line 4: item_history has an empty id"),
        ([(*TRAIN[0], "more")], r"train.csv: cannot be read as CSV"),
        ([], "train.csv: contains no samples"),
    ],
)
def test_bad_lines_are_one_clear_error_and_no_store(tmp_path, train, message):
    write(tmp_path, train=train)
    with pytest.raises(DinError, match=message):
        prepare(tmp_path)
    assert not (tmp_path / "store").exists()


def test_an_unusable_file_is_one_clear_error(tmp_path):
    write(tmp_path)
    (tmp_path / "test.csv").unlink()
    with pytest.raises(DinError, match=r"test.csv: No such file"):
        prepare(tmp_path)
    (tmp_path / "test.csv").write_text("label,user_id,item_id\n1,2,3\n")
    with pytest.raises(DinError, match="lacks cate_id, item_history, cate_history"):
        prepare(tmp_path)
    (tmp_path / "test.csv").write_text("")
    with pytest.raises(DinError, match=r"test.csv: cannot be read as CSV"):
        prepare(tmp_path)
    with pytest.raises(DinError, match="--min-count 0"):
        prepare(tmp_path, min_count=0)


def test_rows_as_requests_have_the_batches_of_their_samples(tmp_path):
    write(tmp_path, valid=VALID)
    prepare(tmp_path, valid=True)
    assert_requests_are_batches(Store(tmp_path / "store"), [5, 4, 3, 2, 1, 0])
