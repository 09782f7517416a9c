"""A small log, and the samples that plain loops over its rows give."""

import functools

import numpy as np
import polars as pl

from din_jax.data.store import SPLITS, Store
from din_jax.prepare import log

SPEC = """
[impressions]
path = "impressions.parquet"
label = "click"
user = "user"
item = "film"
time = "at"
context = ["tab", "price"]

[items]
path = "films.parquet"
item = "film"
valid_from = "since"
columns = ["category", "tags"]

[users]
path = "users.parquet"
user = "user"
columns = ["age"]

[split]
by = "time"
validation = 0.15
test = 0.25

[tables]
item.unknown_share = 0
user.unknown_share = 0
tab.unknown_share = 0
category.unknown_share = 0
tags.unknown_share = 0
age.unknown_share = 0
price.buckets = 4
"""
VIEWS = """
[behaviours]
path = "views.parquet"
user = "user"
item = "film"
time = "at"
"""
BY_TIME = 'by = "time"\nvalidation = 0.15\ntest = 0.25'
BY_COLUMN = """by = "column"
column = "split"
train = "train"
validation = "validation"
test = "test"
"""
ID_TABLES = ("user", "item", "tab", "category", "tags", "age")  # all tables but that of prices


def tables_of_a_log(seed=0, impressions=400, users=8, films=25, times=60):
    """Rows of each table. Times are few, so that many are equal; some rows are duplicates."""
    rng = np.random.default_rng(seed)

    def draw(n):
        return rng.integers(n, size=impressions).tolist()

    rows = [
        {
            "user": user,
            "film": film,
            "at": at,
            "click": click,
            "tab": (None, "home", "search", "new")[tab],
            "price": None if tab == 3 else at % 7 + film / 2,
        }
        for user, film, at, click, tab in zip(
            draw(users), draw(films), draw(times), draw(2), draw(4), strict=True
        )
    ]
    views = [
        {"user": u, "film": f, "at": at}
        for u, f, at in zip(draw(users + 3), draw(films + 9), draw(times), strict=True)
    ]
    return {
        "impressions": rows + rows[::9],
        "views": views + views[:5],
        "films": [
            {
                "film": film,
                "since": since,
                "category": [None, "a", "b", f"c{film}"][film % 4],
                "tags": [f"t{int(t) + 3 * (since // 50)}" for t in rng.integers(6, size=film % 3)],
            }
            for film in range(2, films + 30)
            for since in rng.choice(times, size=1 + film % 3, replace=False).tolist()
        ],
        "users": [{"user": user, "age": user % 3} for user in range(1, users)],
    }


def write(folder, tables, spec):
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(folder / f"{name}.parquet")
    (folder / "spec.toml").write_text(spec)


def prepare(folder, tables, spec, **options):
    write(folder, tables, spec)
    log.prepare(folder / "spec.toml", folder / "store", **options)
    return Store(folder / "store")


def distinct(rows):
    return list({tuple(row.items()): row for row in rows}.values())


def row_at(rows, key, value, time):
    """The row of this key that is valid at a time; in a table without times, the row."""
    valid = [r for r in rows if r[key] == value and ("since" not in r or r["since"] <= time)]
    return max(valid, key=lambda r: r.get("since", 0)) if valid else {}


def behaviors_before(impression, behaviors):
    of_user = [b for b in behaviors if b["user"] == impression["user"]]
    earlier = [b for b in of_user if b["at"] < impression["at"]]
    return sorted(earlier, key=lambda b: b["at"])


def by_time(rows, validation=0.15, test=0.25):
    """The split of each row. Rows of one time stay together, the latest times are test."""
    times = sorted(r["at"] for r in rows)
    start = {
        "test": times[round(len(rows) * (1 - test))],
        "validation": times[round(len(rows) * (1 - test - validation))],
    }
    return [
        next((name for name, time in start.items() if row["at"] >= time), "train") for row in rows
    ]


def oracle(tables, split_of=by_time, clicks=True):
    """{split: samples} with raw values, where ids that training lacks are None; and
    {table: its ids in training}."""
    rows = distinct(tables["impressions"])
    behaviors = [r for r in rows if r["click"]] if clicks else distinct(tables["views"])

    @functools.cache
    def of_item(film, time):
        return row_at(tables["films"], "film", film, time)

    def item_fields(film, time):
        row = of_item(film, time)
        return {"category": row.get("category"), "tags": row.get("tags", [])}

    splits = {name: [] for name in SPLITS}
    for row, split in sorted(
        zip(rows, split_of(rows), strict=True), key=lambda p: (SPLITS.index(p[1]), p[0]["at"])
    ):
        splits[split].append(
            {
                "label": row["click"],
                "price": row["price"],
                "user_id": row["user"],
                "age": row_at(tables["users"], "user", row["user"], None).get("age"),
                "item": row["film"],
                "tab": row["tab"],
                **item_fields(row["film"], row["at"]),
                "history": [
                    {"event": id(b), "item": b["film"], **item_fields(b["film"], b["at"])}
                    for b in behaviors_before(row, behaviors)
                ],
            }
        )
    # The ids of training: of its samples, and of the events of their histories once each.
    events = {b["event"]: b for s in splits["train"] for b in s["history"]}
    train_ids = {table: [] for table in ID_TABLES}
    for owner in [*splits["train"], *events.values()]:
        for field, value in owner.items():
            table = "user" if field == "user_id" else field
            if table in train_ids:
                train_ids[table] += value if isinstance(value, list) else [value]

    vocabulary = {table: set(ids) for table, ids in train_ids.items()}

    def known(table, value):
        return value if value in vocabulary[table] else None

    for sample in [s for samples in splits.values() for s in samples]:
        for owner in [sample, *sample["history"]]:
            owner.pop("event", None)
            for field in ("user_id", "item", "tab", "age", "category"):
                if field in owner:
                    owner[field] = known("user" if field == "user_id" else field, owner[field])
            owner["tags"] = [known("tags", tag) for tag in owner["tags"]]
    return splits, {
        table: [value for value in ids if value is not None] for table, ids in train_ids.items()
    }


def decoded(store, id_tables=ID_TABLES):
    """{split: samples} of a store, as the oracle has them; rows in place of other tables' ids."""
    ids = {t.name: store.vocabulary(t.name).ids.to_list() for t in store.schema.tables}

    @functools.cache
    def column(name):
        return store.column(name).tolist()

    def value(name, field, i):
        raw = ids[field.table] if field.table in id_tables else range(99)
        if not field.multi_hot:
            return raw[column(name)[i]]
        begin, end = column(f"{name}.offsets")[i : i + 2]
        return [raw[row] for row in column(name)[begin:end]]

    def sample(i):
        fields = {f.name: value(f"fields/{f.name}", f, i) for f in store.schema.fields}
        for s in store.schema.sequences:
            start, end = (column(f"sequences/{s.name}.{e}")[i] for e in ("start", "end"))
            fields[s.name] = [
                {f.name: value(f"events/{s.name}/{f.name}", f, event) for f in s.fields}
                for event in range(start, end)
            ]
        return fields | {"label": column("samples/label")[i]}

    return {split: [sample(i) for i in store.split(split)] for split in SPLITS}


def without(samples, *fields):
    return [{k: v for k, v in s.items() if k not in fields} for s in samples]
