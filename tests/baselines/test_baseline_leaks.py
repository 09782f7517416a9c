"""Nothing but training changes a baseline, and no label leaks into what the regression reads."""

import numpy as np
import pytest
from baseline_stores import UNSEEN, random_store

from din_jax.baselines.evaluate import Baselines, _columns
from din_jax.data.store import Store


def training_scores(store):
    """All scores of the training samples, in and out of the fit, and the regression's weights."""
    fitted, regression = Baselines(store)._fitted
    samples = np.array(store.split("train"))
    found = [c for left_out in (0, 1) for c in _columns(fitted, samples, left_out=bool(left_out))]
    return np.stack([column.values for column in found]), regression.weights


def test_other_splits_and_later_events_change_nothing(tmp_path):
    store = random_store(tmp_path / "store")
    rng = np.random.default_rng(9)
    others = np.arange(store.split("train").stop, len(store))
    changed = {}

    def replace(name, where, low, high):
        column = store.column(name).copy()
        column[where] = rng.integers(low, high, len(column[where]))
        changed[name] = column

    replace("samples/label", others, 0, 2)
    replace("samples/user", others, 0, 99)
    replace("fields/item", others, 0, 7)
    for sequence, fields in (("clicks", ("item", "tags")), ("seen", ("goods",))):
        events = len(store.column(f"events/{sequence}/{fields[0]}"))
        replace(f"sequences/{sequence}.start", others, events - UNSEEN, events - 3)
        replace(f"sequences/{sequence}.end", others, events - 3, events + 1)
        for field in fields:
            name, first = f"events/{sequence}/{field}", events - UNSEEN
            if field == "tags":
                first = int(store.column(f"{name}.offsets")[first])
            replace(name, slice(first, None), 0, 5)
    scores, weights = training_scores(store)
    found, found_weights = training_scores(store.with_columns(changed))
    assert (found == scores).all()
    assert (found_weights == weights).all()


def test_where_labels_are_coin_flips_nothing_is_learnt(planted_store):
    store = Store(planted_store)
    label = np.random.default_rng(0).integers(0, 2, len(store))
    metrics = Baselines(store.with_columns({"samples/label": label})).metrics("test")
    assert len(metrics) > 15
    for name, values in metrics.items():
        assert values["auc"] == pytest.approx(0.5, abs=0.04), name  # 1,800 samples
    assert metrics["logistic regression"]["log_loss"] < np.log(2) + 0.01


def test_the_regression_trusts_no_click_rate_that_was_fitted_to_its_own_labels(planted_store):
    """Clicks depend on the history alone; most goods have few impressions, of rates of noise."""
    store = Store(planted_store)
    found = {c.name: c.values for c in Baselines(store).scores(np.arange(len(store)))}
    p = np.where(found["count of category in history"] > 0, 0.6, 0.3)
    clicked = np.random.default_rng(1).random(len(store)) < p
    store = store.with_columns({"samples/label": clicked.astype(np.uint8)})
    metrics = Baselines(store).metrics("test")
    cause = metrics["count of category in history"]["auc"]
    print(metrics)
    assert cause > 0.6
    assert metrics["logistic regression"]["auc"] > cause - 0.01


def test_a_drawn_non_click_beside_each_click_gives_no_label_away(planted_store):
    """A user's click rate is ½, also without the samples near the one that is scored."""
    store = Store(planted_store)
    store = store.with_columns({"samples/label": (np.arange(len(store)) % 2).astype(np.uint8)})
    scores, _ = training_scores(store)
    names = [column.name for column in Baselines(store).scores(np.arange(1))][:-1]
    user = scores[len(names) + names.index("click rate of the user")]
    np.testing.assert_allclose(user, 0.5)
