"""Negatives drawn for a log of what users took, against loops over its rows."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from small_logs import IMPRESSIONS, KNOWN, SPLIT, histories, ids, prepared, write

from din_jax.errors import DinError
from din_jax.prepare import log

SPEC = IMPRESSIONS.replace('label = "click"\n', 'context = ["tab"]\nad = ["shop", "tag"]\n')
LAST = '\n[split]\nby = "last"\n'
BY_USER = '\n[split]\nby = "user"\nvalidation = 0.3\ntest = 0.3\n'


def negatives(by="uniform", more="", number=3):
    return f'\n[negatives]\nper_positive = {number}\nby = "{by}"\n{more}'


def purchases(seed=0, rows=150, users=12, items=30):
    rng = np.random.default_rng(seed)
    item = rng.integers(items, size=rows) + 100
    return pl.DataFrame(
        {
            "user": rng.integers(users, size=rows),
            "item": item,
            "time": np.sort(rng.integers(80, size=rows)),
            "tab": [f"t{k % 3}" for k in range(rows)],
            "shop": [f"s{i % 4}" for i in item],
            "tag": [f"{i}-{k % 5}" for k, i in enumerate(item)],  # of the row
        }
    ).unique(["user", "item", "time"], maintain_order=True)


def groups(store, each):
    """Each positive and its negatives: (user, time, items, numbers of the samples)."""
    users, items = ids(store, "user_id"), ids(store, "item")
    time = [None] * len(items)
    if any(sequence.times for sequence in store.schema.sequences):
        time = (store.column("samples/time") // 3600).tolist()
    for first in range(0, len(items), each):
        rows = range(first, first + each)
        assert {users[r] for r in rows} == {users[first]}
        assert {time[r] for r in rows} == {time[first]}
        yield users[first], time[first], [items[r] for r in rows], rows


@pytest.mark.parametrize("exclude", ["before", "ever"])
@pytest.mark.parametrize("split", [SPLIT, LAST])
def test_each_positive_is_followed_by_what_its_user_had_not_taken(tmp_path, exclude, split):
    frame = purchases()
    views = pl.DataFrame({"user": range(12), "item": [103] * 12, "time": [40] * 12})
    spec = SPEC + negatives(more=f'exclude = "{exclude}"\n') + split + KNOWN
    spec += '[behaviours]\npath = "views.csv"\nuser = "user"\nitem = "item"\ntime = "time"\n'
    store = prepared(tmp_path, spec, impressions_csv=frame, views_csv=views)
    rows = frame.rows(named=True)
    taken = [(r["user"], r["item"], r["time"]) for r in [*rows, *views.rows(named=True)]]
    shop_of = {r["item"]: r["shop"] for r in rows}
    first_tag = {r["item"]: r["tag"] for r in reversed(rows)}
    own_tags = {(r["user"], r["item"], r["time"]): r["tag"] for r in rows}
    shops, tabs, label = ids(store, "shop"), ids(store, "tab"), store.column("samples/label")
    tags = ids(store, "tag")
    found, drawn = [], set()
    lists = histories(store)
    for user, time, items, at in groups(store, 4):
        assert label[at.start : at.stop].tolist() == [1, 0, 0, 0]
        found.append((user, items[0], time))
        # An id that training lacks is unknown.
        of_user = {i for u, i, t in taken if u == user and (exclude == "ever" or t <= time)}
        assert not of_user & {i for i in items[1:] if i is not None}
        drawn |= {i for u, i, t in taken if u == user and t > time} & set(items[1:])
        assert all(shops[r] in (shop_of[i], None) for i, r in zip(items, at, strict=True) if i)
        expected = [own_tags.get((user, items[0], time)), *map(first_tag.get, items[1:])]
        assert all(tags[r] in (e, None) for e, i, r in zip(expected, items, at, strict=True) if i)
        assert len({tabs[r] for r in at}) == 1  # the context is the positive's
        assert len({tuple(lists[r]) for r in at}) == 1
        assert len(lists[at.start]) == sum(u == user and t < time for u, _, t in taken[len(rows) :])
    known = {i for _, i, _ in found if i is not None}
    assert Counter((u, i if i in known else None, t) for u, i, t in taken[: len(rows)]) == Counter(
        found
    )
    assert bool(drawn) == (exclude == "before")
    assert store.origin["negatives"] == {
        "by": "uniform",
        "per positive": 3,
        "exclude": exclude,
        "catalogue": frame["item"].n_unique(),
    }


@pytest.mark.parametrize("split", [SPLIT, LAST])
def test_histories_are_the_positives_before(tmp_path, split):
    frame = purchases(3)
    store = prepared(tmp_path, SPEC + negatives() + split + KNOWN, impressions_csv=frame)
    rows = frame.rows(named=True)
    lists = histories(store)
    for user, time, _, at in groups(store, 4):
        before = [r["item"] for r in rows if r["user"] == user and r["time"] < time]
        for r in at:
            assert all(a in (b, None) for a, b in zip(lists[r], before, strict=True))
    if split == LAST:
        starts = {name: store.split(name) for name in ("train", "validation", "test")}
        last = frame.group_by("user", maintain_order=True).agg(pl.len(), pl.col("time").max())
        of_test = {
            (user, time) for user, time, _, at in groups(store, 4) if at.start in starts["test"]
        }
        assert of_test == {(u, t) for u, n, t in last.rows() if n >= 3}


def test_in_category_of_a_side_table(tmp_path):
    frame = purchases(1)
    # The items from 120 on lack a category, and 119 is not in the table.
    category = {item: f"c{item % 3}" if item < 120 else None for item in range(100, 130)}
    del category[119]
    spec = SPEC + negatives("in_category", 'category = "kind"\n', number=2) + SPLIT + KNOWN
    spec += '[items]\npath = "items.csv"\nitem = "item"\ncolumns = ["kind"]\n'
    items = pl.DataFrame({"item": list(category), "kind": list(category.values())})
    store = prepared(tmp_path, spec, impressions_csv=frame, items_csv=items)
    notes = "\n".join(store.origin["notes"])
    assert "of all categories" not in notes
    for _, _, (positive, *drawn), _ in groups(store, 3):
        if positive is not None:
            assert {category.get(i) for i in drawn if i} <= {category.get(positive)}


def test_popularity_is_that_of_training(tmp_path):
    rng = np.random.default_rng(0)
    frame = purchases(2, rows=400, users=400)
    # Item 1 is the most popular one, but of the latest rows, which have items of their own.
    late = frame["time"].to_numpy() > 70
    share = np.array([20.0] + [1.0] * 19) / 39
    item = np.where(late, rng.integers(200, 205, len(late)), 1 + rng.choice(20, len(late), p=share))
    frame = frame.with_columns(item=pl.Series(item)).unique(["user", "item"], maintain_order=True)
    spec = SPEC + negatives("popularity") + SPLIT + KNOWN
    store = prepared(tmp_path, spec, impressions_csv=frame)
    drawn = Counter(i for _, _, items, _ in groups(store, 4) if items[0] != 1 for i in items[1:])
    known = set(store.vocabulary("item").ids[1:])
    assert set(drawn) <= set(range(1, 21)) & known
    assert drawn[1] > 3 * max(drawn[i] for i in range(2, 21))
    changed = frame.with_columns(
        item=pl.when(pl.col("time") > 70).then(404 - pl.col("item")).otherwise("item")
    )
    again = prepared(tmp_path / "b", spec, impressions_csv=changed)
    size = len(store.split("train"))
    assert ids(again, "item")[:size] == ids(store, "item")[:size]
    assert set(again.vocabulary("item").ids[1:]) == known


def test_what_the_own_list_holds_is_not_drawn(tmp_path):
    rng = np.random.default_rng(0)
    frame = purchases(rows=60)
    frame = frame.with_columns(
        hist=pl.Series([rng.integers(100, 130, 3).tolist() for _ in range(len(frame))])
    )
    spec = SPEC.replace(".csv", ".parquet") + negatives() + SPLIT + KNOWN
    spec += '[history]\nitem = "hist"\n'
    store = prepared(tmp_path, spec, impressions_parquet=frame)
    lists = histories(store)
    for _, _, items, at in groups(store, 4):
        assert not {i for i in items[1:] if i} & set(lists[at.start])


def test_positives_of_a_label_and_weights(tmp_path):
    frame = purchases().with_columns(
        act=pl.Series(["buy", "pv"]).gather(pl.Series(np.arange(len(purchases())) % 2)),
        w=pl.int_range(pl.len()) % 3 + 1,
    )
    spec = SPEC.replace(
        "time_unit", 'label = {column = "act", positive = ["buy"]}\nweight = "w"\ntime_unit'
    )
    store = prepared(tmp_path, spec + negatives() + SPLIT + KNOWN, impressions_csv=frame)
    bought = frame.filter(pl.col("act") == "buy")
    assert store.column("samples/weight")[::4].tolist() == bought["w"].to_list()
    assert len(store.column("samples/label")) == 4 * len(bought)
    assert store.origin["rows"]["impressions"]["not positive"] == len(frame) - len(bought)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SPEC + negatives(number=0), "per_positive = 0; expected a whole number from 1 on"),
        (SPEC + '[negatives]\nby = "uniform"\n', "has no 'per_positive'"),
        (SPEC + negatives("popular"), "by = 'popular'; expected .*popularity"),
        (SPEC + negatives("in_category"), "in_category.* and category, .* go together"),
        (SPEC + negatives(more='category = "shop"\n'), "go together"),
        (SPEC + negatives("in_category", 'category = "tab"\n'), "'tab' is no field of the ad"),
        (SPEC + negatives(more='exclude = "never"\n'), "exclude = 'never'; expected"),
        (
            SPEC.replace('time = "time"\ntime_unit = "h"\n', "") + negatives() + BY_USER,
            'exclude = "before" needs a time',
        ),
        (SPEC.replace('user = "user"\n', "") + negatives(), "no 'user', which .negatives. needs"),
        (SPEC, "has no 'label'.*\\[negatives\\].*--like"),
    ],
)
def test_invalid_negatives(tmp_path, spec, message):
    spec += "" if "[split]" in spec else SPLIT
    path = write(tmp_path, spec, impressions_csv=purchases())
    with pytest.raises(DinError, match=message):
        log.prepare(path, tmp_path / "store")
