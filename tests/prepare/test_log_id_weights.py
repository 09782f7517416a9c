"""Fields of ids with weights, id:weight, against the text that they are read from."""

import itertools

import numpy as np
import polars as pl
import pytest
from small_logs import IMPRESSIONS, KNOWN, SPLIT, histories, ids, impressions, prepared

from din_jax.data.source import BatchSource
from din_jax.errors import DinError
from din_jax.prepare import log

ITEMS = """
[items]
path = "items.csv"
item = "item"
[items.columns]
tags = { separator = "|", weighted = "use" }
"""
TAGS = {10 + i: {f"t{j}": round(0.25 * j - i, 2) for j in range(i % 4)} for i in range(7)}
AD = '[impressions.ad]\ntopics = { list = "json", weighted = "use", table = "tags" }\n'


def as_text(weights):
    return "|".join(f"{tag}:{weight}" for tag, weight in weights.items())


def topics(k):
    return {f"t{j}": (k + j) / 8 for j in range(k % 3)}


def a_log(**columns):
    return impressions(
        topics=lambda k: str([f"{t}:{w}" for t, w in topics(k).items()]).replace("'", '"'),
        **columns,
    )


def side_table():
    return pl.DataFrame({"item": list(TAGS), "tags": [as_text(TAGS[item]) for item in TAGS]})


def weighted(store, name, table="tags"):
    """[entry] {id: weight}"""
    known = store.vocabulary(table).ids.to_list()
    rows, weights = store.column(name), store.column(f"{name}.weights")
    assert weights.dtype == np.float32
    return [
        {known[r]: w for r, w in zip(rows[a:b].tolist(), weights[a:b].tolist(), strict=True)}
        for a, b in itertools.pairwise(store.column(f"{name}.offsets").tolist())
    ]


@pytest.fixture
def a_store(tmp_path):
    spec = IMPRESSIONS + AD + ITEMS + SPLIT + KNOWN + "tags.unknown_share = 0\n"
    return prepared(tmp_path, spec, impressions_csv=a_log(), items_csv=side_table())


def test_weights_stand_beside_the_ids_of_samples_and_behaviours(a_store):
    store = a_store
    assert weighted(store, "fields/tags") == [TAGS[item] for item in ids(store, "item")]
    assert weighted(store, "fields/topics") == [topics(k) for k in range(50)]
    clicked = [weighted(store, f"events/history/{name}") for name in ("tags", "topics")]
    start, end = (store.column(f"sequences/history.{e}").tolist() for e in ("start", "end"))
    for k, items in enumerate(histories(store)):
        part = slice(start[k], end[k])
        assert clicked[0][part] == [TAGS[item] for item in items]
        assert clicked[1][part] == [topics(j) for j in range(k) if j % 3 == 0 and j % 5 == k % 5]
    assert store.schema.fields[1].weighted or store.schema.fields[2].weighted
    assert '"version": 2' in (store.path / "schema.json").read_text()


def test_batches_hold_the_weights(a_store):
    store, text = a_store, [TAGS[item] for item in ids(a_store, "item")]
    source = BatchSource(store, "train", 8, shuffle=False)
    batch, history = source[2], source[2].sequences["history"]
    for i in range(8):
        tags = batch.fields["tags"]
        held = tags.weights[tags.segment_ids == i].tolist()
        assert held == list(text[16 + i].values())
    tags = history.fields["tags"]
    visited = [item for items in histories(store)[16:24] for item in items]
    expected = [weight for item in visited for weight in TAGS[item].values()]
    assert tags.weights[tags.segment_ids < len(history.segment_ids)].tolist() == expected
    assert (tags.weights[tags.segment_ids == len(history.segment_ids)] == 0).all()


def test_negatives_have_the_weights_of_their_items(tmp_path):
    spec = IMPRESSIONS.replace('label = "click"\n', "")
    spec += AD.replace("topics", "own", 1).replace("list", 'column = "own", list') + SPLIT
    spec += "[negatives]\nper_positive = 2\nby = 'uniform'\n"
    frame = impressions(item=lambda k: k % 23, own=lambda k: f'["a:{k % 23}"]')
    store = prepared(tmp_path, spec, impressions_csv=frame)
    assert weighted(store, "fields/own") == [{"a": item} for item in ids(store, "item")]


def test_a_day_to_score_has_weights_too(a_store, tmp_path):
    spec = IMPRESSIONS.replace('label = "click"\n', "") + AD + ITEMS
    spec += "[behaviours]\npath = 'impressions.csv'\nuser = 'user'\nitem = 'item'\ntime = 'time'\n"
    spec += "time_unit = 'h'\n[behaviours.ad]\n" + AD.split("\n")[1] + "\n"
    tables = {"impressions_csv": a_log(), "items_csv": side_table()}
    day = prepared(tmp_path / "day", spec, like=a_store.path, **tables)
    assert weighted(day, "fields/topics") == [topics(k) for k in range(50)]
    without = spec.replace('weighted = "use"', 'weighted = "drop"')
    with pytest.raises(DinError, match="with weights"):
        prepared(tmp_path / "other", without, like=a_store.path, **tables)


@pytest.mark.parametrize(
    ("how", "value", "message"),
    [
        ('separator = "|", weighted = "use"', "a:1|b", r"line 3: .*'a:1\|b'; expected .*id:0.5"),
        ('separator = "|", weighted = "use"', "a:1|b:inf", "line 3: .*id:0.5"),
        ('separator = "|", weighted = "use", take = "first"', "a:1", 'or remove take|"drop"'),
        ('weighted = "use"', "a:1", "name the separator"),
        ('separator = "|", weighted = "mean"', "a:1", '"use" for id:weight, or "drop"'),
        ('numeric = "none", weighted = "use"', "1", "numeric and has weighted"),
    ],
)
def test_what_has_no_weights_is_an_error(tmp_path, how, value, message):
    spec = IMPRESSIONS + f"[impressions.ad]\ntags = {{{how}}}\n" + SPLIT
    frame = impressions(tags=lambda k: value if k == 1 else "a:1")
    with pytest.raises(DinError, match=message):
        prepared(tmp_path, spec, impressions_csv=frame)


def test_behaviours_of_lists_have_no_weights(tmp_path):
    spec = (
        IMPRESSIONS
        + SPLIT
        + '[history]\nitem = {column = "h", separator = "|", weighted = "use"}\n'
    )
    with pytest.raises(
        DinError, match='behaviours, which have no weights; write weighted = "drop"'
    ):
        prepared(tmp_path, spec, impressions_csv=impressions(h=lambda k: "10:1|11:2"))


def test_check_shows_the_ids(a_store):
    (line,) = [x for x in log.check(a_store.path.parent / "spec.toml") if x.startswith("  topics")]
    assert "text, several a row, with weights, 2 distinct" in line
