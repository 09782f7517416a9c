"""The preparation of a log against plain loops over its rows."""

import sys

import numpy as np
import polars as pl
import pytest
from log_oracle import (
    ID_TABLES,
    SPEC,
    VIEWS,
    behaviors_before,
    decoded,
    distinct,
    oracle,
    prepare,
    row_at,
    tables_of_a_log,
    without,
    write,
)

from din_jax.data.store import SPLITS, Store
from din_jax.prepare import __main__ as commands
from din_jax.prepare.log.report import report


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("clicks", [True, False])
def test_samples_histories_and_side_tables_are_those_of_plain_loops(tmp_path, seed, clicks):
    tables = tables_of_a_log(seed)
    store = prepare(tmp_path, tables, SPEC + ("" if clicks else VIEWS))
    expected, train_ids = oracle(tables, clicks=clicks)
    samples = decoded(store)
    for split in SPLITS:
        assert without(samples[split], "price") == without(expected[split], "price")
    for table in ID_TABLES:
        ids, counts = store.vocabulary(table)
        assert ids.to_list()[1:] == sorted(set(train_ids[table]))
        assert counts.tolist()[1:] == [train_ids[table].count(i) for i in ids[1:]]


def test_prices_fall_in_buckets_between_quantiles_of_training(tmp_path):
    tables = tables_of_a_log()
    store = prepare(tmp_path, tables, SPEC)
    expected, _ = oracle(tables)
    ends, counts = store.vocabulary("price")
    prices = np.array(sorted(s["price"] for s in expected["train"] if s["price"] is not None))
    # The smallest prices that a quarter, a half and three quarters of training do not exceed.
    quartiles = [prices[int(np.ceil(len(prices) * q)) - 1] for q in (0.25, 0.5, 0.75)]
    assert ends.to_list() == [None, -np.inf, *quartiles]
    assert ends.dtype == pl.Float64
    for split, samples in decoded(store).items():
        for sample, plain in zip(samples, expected[split], strict=True):
            price = plain["price"]
            row = 0 if price is None else 1 + sum(price >= end for end in quartiles)
            assert sample["price"] == row
    rows = store.column("fields/price")[: len(expected["train"])]
    assert counts.tolist()[1:] == np.bincount(rows, minlength=5)[1:].tolist()


def test_the_origin_counts_input_and_output(tmp_path):
    tables = tables_of_a_log()
    origin = prepare(tmp_path, tables, SPEC + VIEWS).origin
    expected, train_ids = oracle(tables, clicks=False)
    views = distinct(tables["views"])
    assert origin["rows"]["impressions"] == {
        "read": len(tables["impressions"]),
        "duplicates": len(tables["impressions"]) - len(distinct(tables["impressions"])),
        "in no split": 0,
    }
    assert origin["rows"]["behaviours"] == {
        "read": len(tables["views"]),
        "duplicates": len(tables["views"]) - len(views),
        "user found": sum(v["user"] < 8 for v in views),
        "item found": sum(v["film"] in {i["film"] for i in tables["impressions"]} for v in views),
        "of users without impressions": sum(v["user"] >= 8 for v in views),
    }
    for split, samples in expected.items():
        lengths = [len(s["history"]) for s in samples]
        assert origin["samples"][split] == len(samples)
        assert origin["label rate"][split] == pytest.approx(
            np.mean([s["label"] for s in samples]), abs=1e-6
        )
        assert origin["histories"]["history"][split] == {
            "mean": pytest.approx(np.mean(lengths), abs=1e-3),
            "longest": max(lengths),
            "empty": pytest.approx(lengths.count(0) / len(lengths), abs=1e-6),
        }
        unknown = {
            "age": [s["age"] is None for s in samples],
            "category": [s["category"] is None for s in samples],
            "tags": [tag is None for s in samples for tag in s["tags"]],
            "price": [s["price"] is None for s in samples],
        }
        for field, values in unknown.items():
            assert origin["unknown"][field][split] == pytest.approx(np.mean(values))
    assert origin["tables"]["item"]["ids"] == len(set(train_ids["item"]))
    impressions = distinct(tables["impressions"])

    def share_in_films(rows):
        joined = [row_at(tables["films"], "film", r["film"], r["at"]) for r in rows]
        return pytest.approx(np.mean([bool(row) for row in joined]), abs=1e-6)

    known = {r["user"] for r in tables["users"]}
    assert origin["found"] == {
        "items": {
            "samples": share_in_films(impressions),
            "history": share_in_films([v for v in views if v["user"] < 8]),
        },
        "users": {
            "samples": pytest.approx(np.mean([r["user"] in known for r in impressions]), abs=1e-6)
        },
    }


def test_a_separator_that_is_in_no_value_is_noted(tmp_path):
    tables = tables_of_a_log(impressions=100)
    tables["films"] = [r | {"tags": "|".join(r["tags"])} for r in tables["films"]]
    spec = SPEC.replace('["category", "tags"]', '{category = {}, tags = {separator = "SEPARATOR"}}')
    for separator, notes in (("|", 0), (",", 1)):
        origin = prepare(tmp_path / str(notes), tables, spec.replace("SEPARATOR", separator)).origin
        of_separators = [note for note in origin["notes"] if "separator" in note]
        assert len(of_separators) == notes
    assert "[items] tags: the separator ',' is in no value of column 'tags'" in of_separators[0]
    assert of_separators[0] in "\n".join(report(origin))


def test_the_command_reports_and_writes(tmp_path, monkeypatch, capsys):
    write(tmp_path, tables_of_a_log(impressions=100), SPEC)
    arguments = ["log", "--out", f"{tmp_path}/store", "--spec", f"{tmp_path}/spec.toml"]
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    origin = Store(tmp_path / "store").origin
    assert f"train samples               {origin['samples']['train']:,}, label" in printed
    assert f"read {origin['rows']['impressions']['read']:,}, duplicates" in printed
    # The store is there now: the command line gets an error and the status of one.
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert stop.value.code == 1
    assert "store exists already" in capsys.readouterr().err


def test_several_sequences_and_prior_behaviours_in_their_order(tmp_path):
    tables = tables_of_a_log()
    rng = np.random.default_rng(3)
    tables["earlier"] = [
        {"user": u, "film": int(rng.integers(25)), "rank": int(rank)}
        for u in range(6)
        for rank in rng.permutation(7)
    ]
    spec = SPEC.replace('valid_from = "since"', "").replace('"category", "tags"', '"category"')
    spec = spec.replace("tags.unknown_share = 0", "")
    tables["films"] = list({r["film"]: r for r in tables["films"]}.values())
    spec += VIEWS.replace("[behaviours]", "[behaviours.views]") + (
        "[behaviours.earlier]\n"
        'path = "earlier.parquet"\nuser = "user"\nitem = "film"\nprior = true\norder = "rank"\n'
    )
    store = prepare(tmp_path, tables, spec)
    assert [s.name for s in store.schema.sequences] == ["views", "earlier"]
    views = distinct(tables["views"])
    rows = sorted(distinct(tables["impressions"]), key=lambda r: r["at"])
    samples = [s for split in decoded(store).values() for s in split]
    for row, sample in zip(rows, samples, strict=True):
        earlier = [r for r in tables["earlier"] if r["user"] == row["user"]]
        earlier = sorted(earlier, key=lambda r: r["rank"])
        assert [b["item"] for b in sample["earlier"]] == [r["film"] for r in earlier]
        films = [b["film"] for b in behaviors_before(row, views)]
        assert len(sample["views"]) == len(films)
        # A film that training lacks is unknown.
        assert all(b["item"] in (None, f) for b, f in zip(sample["views"], films, strict=True))


def test_columns_of_the_impressions_are_fields_of_all_groups(tmp_path):
    tables = tables_of_a_log(impressions=200)
    for row in tables["impressions"]:
        row |= {"Shop Name": f"shop{row['film'] % 3}", "vip": row["user"] % 2 == 1}
    for row in tables["views"]:
        row["shop"] = f"shop{row['film'] % 3}"
    ad = '\n[impressions.ad]\nshop = {column = "Shop Name", table = "firm"}\n'
    spec = SPEC.replace('context = ["tab", "price"]', 'context = ["tab", "price"]\n' + ad)
    spec = spec.replace('time = "at"', 'time = "at"\nprofile = ["vip"]')
    with_clicks = prepare(tmp_path / "clicks", tables, spec)
    groups = {f.name: (f.group, f.table) for f in with_clicks.schema.fields}
    assert (groups["shop"], groups["vip"]) == (("ad", "firm"), ("user", "vip"))
    assert with_clicks.vocabulary("vip").ids.to_list() == [None, "false", "true"]
    spec += VIEWS + 'ad = {shop = {table = "firm"}}\n'
    for store in (with_clicks, prepare(tmp_path / "views", tables, spec)):
        splits = decoded(store, (*ID_TABLES, "firm", "vip"))
        for sample in [s for split in splits.values() for s in split]:
            for owner in [sample, *sample["history"]]:
                if owner["item"] is not None:
                    assert owner["shop"] == f"shop{owner['item'] % 3}"


def test_rare_ids_are_unknown(tmp_path):
    tables = tables_of_a_log()
    store = prepare(tmp_path, tables, SPEC.replace("item.unknown_share = 0", "item.min_count = 20"))
    _, train_ids = oracle(tables)
    frequent = {film for film in train_ids["item"] if train_ids["item"].count(film) >= 20}
    assert set(store.vocabulary("item").ids[1:]) == frequent
    assert store.origin["tables"]["item"] == {
        "ids": len(frequent),
        "made unknown": 0,
        "too rare": len(set(train_ids["item"])) - len(frequent),
    }
    assert 0 < len(frequent) < len(set(train_ids["item"]))
