"""Small logs, written as text or frames, and what their preparation gives."""

import itertools

import polars as pl

from din_jax.data.store import Store
from din_jax.prepare import log

IMPRESSIONS = """[impressions]
path = "impressions.csv"
label = "click"
user = "user"
item = "item"
time = "time"
time_unit = "h"
"""
SPLIT = """
[split]
by = "time"
validation = 0.2
test = 0.2
"""
KNOWN = """
[tables]
item.unknown_share = 0
user.unknown_share = 0
"""  # no id is made unknown


def impressions(rows=50, **columns):
    """A log as a frame: a row an hour; `columns` are functions of the row's number."""
    frame = {
        "click": [int(k % 3 == 0) for k in range(rows)],
        "user": [k % 5 for k in range(rows)],
        "item": [10 + k % 7 for k in range(rows)],
        "time": [1000 + k for k in range(rows)],
    }
    frame |= {name: [value(k) for k in range(rows)] for name, value in columns.items()}
    return pl.DataFrame(frame, infer_schema_length=None)


def csv(frame):
    return frame.write_csv()


def write(folder, spec, **tables):
    """Writes the spec and each table: NAME_csv = text, bytes or a frame is NAME.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tables.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, pl.DataFrame):
            if path.suffix == ".parquet":
                content.write_parquet(path)
                continue
            content = content.write_csv()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "spec.toml").write_text(spec)
    return folder / "spec.toml"


def prepared(folder, spec, *, like=None, seed=0, **tables):
    """The store of a spec with its tables."""
    log.prepare(write(folder, spec, **tables), folder / "store", like=like, seed=seed)
    return Store(folder / "store")


def ids(store, name, table=None):
    """The raw ids of a field of the samples, None where unknown; lists of a multi-hot one."""
    field = next(f for f in store.schema.fields if f.name == name)
    known = store.vocabulary(table or field.table).ids.to_list()
    values = [known[row] for row in store.column(f"fields/{name}").tolist()]
    if not field.multi_hot:
        return values
    offsets = store.column(f"fields/{name}.offsets").tolist()
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


def histories(store, name="history", field="item"):
    """The raw ids of each sample's history."""
    known = store.vocabulary(field).ids.to_list()
    events = [known[row] for row in store.column(f"events/{name}/{field}").tolist()]
    start, end = (store.column(f"sequences/{name}.{e}").tolist() for e in ("start", "end"))
    return [events[a:b] for a, b in zip(start, end, strict=True)]
