"""Labels in all their forms, weights, and samples without a label."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score
from small_logs import IMPRESSIONS, KNOWN, SPLIT, histories, ids, impressions, prepared, write

from din_jax.baselines.evaluate import Baselines
from din_jax.data.store import UNLABELLED
from din_jax.errors import DinError
from din_jax.metrics import all_metrics
from din_jax.prepare import log
from din_jax.training.evaluation import Evaluator


def spec_of(label, more=""):
    return IMPRESSIONS.replace('"click"', label, 1) + more + SPLIT + KNOWN


@pytest.mark.parametrize(
    ("label", "value", "is_click"),
    [
        ('"click"', lambda k: k % 2, lambda k: k % 2),
        ('"click"', lambda k: f"{k % 2}.0", lambda k: k % 2),
        ('{column = "click", at_least = 4}', lambda k: k % 5 + 1, lambda k: k % 5 >= 3),
        ('{column = "click", at_least = 4.5}', lambda k: k % 5 + 0.5, lambda k: k % 5 == 4),
        ('{column = "click", at_least = 0}', lambda k: k % 3 - 1, lambda k: k % 3 > 0),
        (
            '{column = "click", positive = ["buy", "cart"]}',
            lambda k: ("pv", "buy", "cart")[k % 3],
            lambda k: k % 3 > 0,
        ),
        ('{column = "click", positive = 2}', lambda k: k % 3, lambda k: k % 3 == 2),
        ('{column = "click", positive = true}', lambda k: k % 2 == 1, lambda k: k % 2),
    ],
)
def test_forms_of_labels(tmp_path, label, value, is_click):
    frame = impressions(click=value)
    store = prepared(tmp_path, spec_of(label), impressions_csv=frame)
    expected = [int(is_click(k)) for k in range(len(frame))]
    assert store.column("samples/label").tolist() == expected
    # The clicks are the behaviours.
    rows = frame.with_columns(click=pl.Series(expected)).rows(named=True)
    assert histories(store) == [
        [b["item"] for b in rows[:k] if b["click"] and b["user"] == row["user"]]
        for k, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ('"click"', lambda k: k % 3, r"line 4: column 'click' .* is 2; expected .*at_least = 4"),
        ('"click"', lambda k: ("no", "yes")[k % 2], r"is 'no'; .*25 × '(yes|no)'.*positive ="),
        (
            '"click"',
            lambda k: "NULL" if k > 40 else "1",
            r"is 'NULL'; .*null_values = \[\"NULL\"\]",
        ),
        ('{column = "click", at_least = 1}', lambda k: "x", r"is 'x'; expected a number"),
        ('{column = "click", positive = "bye"}', lambda k: "buy", r"no row .* has 50 × 'buy'"),
        ('{column = "click"}', lambda k: 1, r"expected one of positive = .* and at_least"),
        ('{clicks = "click"}', lambda k: 1, r"has clicks; expected clicks and impressions"),
        ('"click"', lambda k: None if k == 7 else 1, r"1 of 30 samples of train .* of user 2"),
        ('"click"', lambda k: None, r"30 of 30 samples of train have no label.*--like"),
    ],
)
def test_invalid_labels(tmp_path, label, value, message):
    path = write(tmp_path, spec_of(label), impressions_csv=impressions(click=value))
    with pytest.raises(DinError, match=message):
        log.prepare(path, tmp_path / "store")


@pytest.mark.parametrize(("labelled", "of_test"), [(44, 4), (40, 0)])
def test_samples_of_test_may_have_no_label(tmp_path, labelled, of_test):
    frame = impressions(click=lambda k: k % 2 if k < labelled else None)
    store = prepared(tmp_path, spec_of('"click"'), impressions_csv=frame)
    label = store.column("samples/label").tolist()
    assert label == [k % 2 if k < labelled else UNLABELLED for k in range(50)]
    rows = frame.rows(named=True)
    assert histories(store) == [
        [b["item"] for b in rows[:k] if b["click"] and b["user"] == row["user"]]
        for k, row in enumerate(rows)
    ]
    rate = store.origin["label rate"]
    assert rate["train"] == 0.5
    assert rate["test"] == (0.5 if of_test else None)
    notes = "\n".join(store.origin["notes"])
    expected = (
        "6 of 10 samples of test have no label" if of_test else "no sample of test has a label"
    )
    assert expected in notes


@pytest.mark.parametrize("labelled", [44, 40])
def test_samples_without_a_label_have_no_part_in_metrics(tmp_path, labelled):
    frame = impressions(click=lambda k: k // 2 % 2 if k < labelled else None)
    store = prepared(tmp_path, spec_of('"click"'), impressions_csv=frame)
    known = np.arange(40, labelled)
    probabilities = np.random.default_rng(0).random(10)
    evaluator = Evaluator(None, store, "test", batch_size=8, max_history=0)
    metrics = evaluator.metrics(probabilities)
    assert metrics.pop("samples_without_label") == 50 - labelled
    if not len(known):
        assert np.isnan([metrics["auc"], metrics["log_loss"]]).all()
        with pytest.raises(DinError, match="no sample of test has a label"):
            Baselines(store).metrics("test")
        return
    labels = known // 2 % 2
    expected = all_metrics(store.column("samples/user")[known], labels, probabilities[known - 40])
    np.testing.assert_equal(metrics, expected)
    of_click_rate = Baselines(store).metrics("test")["click rate of item"]
    scores = next(c for c in Baselines(store).scores(known) if c.name == "click rate of item")
    assert of_click_rate["auc"] == roc_auc_score(labels, scores.values)


def test_numbers_of_clicks_and_impressions_weigh_as_their_rows(tmp_path):
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 4, 50)
    clicks = np.minimum(rng.integers(0, 4, 50), shown)
    frame = impressions(click=lambda k: clicks[k], shown=lambda k: shown[k])
    store = prepared(
        tmp_path, spec_of('{clicks = "click", impressions = "shown"}'), impressions_csv=frame
    )
    expanded = Counter()
    for row in frame.rows(named=True):
        for number in range(row["shown"]):
            expanded[row["user"], row["item"], int(number < row["click"])] += 1
    # In their order: of a row, the clicks first.
    samples = list(
        zip(
            ids(store, "user_id"),
            ids(store, "item"),
            store.column("samples/label").tolist(),
            strict=True,
        )
    )
    weights = Counter()
    for sample, weight in zip(samples, store.column("samples/weight").tolist(), strict=True):
        weights[sample] += weight
        assert weight > 0
    assert {k: v for k, v in weights.items() if v} == expanded
    times = store.column("samples/time") // 3600 - 1000
    clicked = [(int(t), s) for t, s in zip(times, samples, strict=True) if s[2]]
    assert [t for t, _ in clicked] == sorted(np.flatnonzero(clicks).tolist())


def test_weights_of_the_rows(tmp_path):
    frame = impressions(w=lambda k: k % 4 / 2)
    store = prepared(tmp_path, spec_of('"click"', 'weight = "w"\n'), impressions_csv=frame)
    assert store.schema.weighted
    assert store.column("samples/weight").tolist() == frame["w"].to_list()


@pytest.mark.parametrize(
    ("columns", "label", "more", "message"),
    [
        ({"w": -1}, '"click"', 'weight = "w"\n', "is -1; expected a number from 0 on"),
        ({"w": "inf"}, '"click"', 'weight = "w"\n', "is 'inf'; expected a number from 0 on"),
        ({"w": None}, '"click"', 'weight = "w"\n', "'w' .* is empty; expected a value"),
        (
            {"n": 0},
            '{clicks = "click", impressions = "n"}',
            "",
            "17 rows with more clicks than impressions, 1 of 0",
        ),
        (
            {"n": 0, "click": 0},
            '{clicks = "click", impressions = "n"}',
            "",
            "every row of .impressions. has 0 impressions",
        ),
        (
            {"n": 9},
            '{clicks = "click", impressions = "n"}',
            'weight = "n"\n',
            "which are the weights, and weight",
        ),
    ],
)
def test_invalid_weights(tmp_path, columns, label, more, message):
    frame = impressions(**{name: lambda k, v=value: v for name, value in columns.items()})
    path = write(tmp_path, spec_of(label, more), impressions_csv=frame)
    with pytest.raises(DinError, match=message):
        log.prepare(path, tmp_path / "store")
