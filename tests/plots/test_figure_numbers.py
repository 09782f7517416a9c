"""The numbers that figures draw, against scikit-learn, SciPy and sums by hand."""

import flax.linen as nn
import numpy as np
import pytest
from hypothesis import given, strategies as st
from logged_curves import CURVES, with_log
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from din_jax.errors import DinError
from din_jax.metrics import user_weighted_auc
from din_jax.nn.activations import Dice, PReLU
from din_jax.plots.activation_weights import (
    activation_weights,
    other_candidates,
    telling_samples,
)
from din_jax.plots.calibration import reliability_bins, wilson
from din_jax.plots.control_functions import (
    control_functions,
    dice_control,
    prelu_control,
    statistics,
)
from din_jax.plots.embeddings import embeddings, tsne
from din_jax.plots.importance import features_read, importance
from din_jax.plots.interest_intensity import interest_intensity
from din_jax.plots.learning_curves import learning_curves, read_curves
from din_jax.plots.slices import auc_by_group, auc_by_slice, quantile_groups, slices


def test_reliability_bins_are_scikit_learns():
    rng = np.random.default_rng(0)
    p = rng.random(1000)
    y = (rng.random(1000) < p).astype(int)
    bins = reliability_bins(y, p, bins=10)
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(bins.predicted, predicted)
    np.testing.assert_allclose(bins.observed, observed)
    assert bins.samples.tolist() == [100] * 10
    assert reliability_bins(y[:3], p[:3], bins=10).samples.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("k", "n"), [(0, 9), (3, 40), (40, 40)])
def test_the_interval_of_a_fraction_is_scipys(k, n):
    low, high = wilson(np.array([k / n]), np.array([n]), z=1.959963984540054)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], atol=1e-12)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 6))
def test_quantile_groups_cover_all_and_are_named_by_their_range(values, groups):
    group, names = quantile_groups(np.array(values), groups)
    assert len(names) <= groups + 1
    for i, name in enumerate(names):
        low, _, high = name.partition("–")
        members = [v for v, g in zip(values, group, strict=True) if g == i]
        assert members
        assert int(low) <= min(members) <= max(members) <= int(high or low)


def test_auc_by_group_is_scikit_learns(softmax):
    scores = softmax.scores
    for group, names in slices(softmax).values():
        assert len(group) == len(scores.labels)
        found = auc_by_group(softmax, group, names)
        for i, name in enumerate(names):
            chosen = group == i
            labels = scores.labels[chosen]
            shown = f"{name}\n({chosen.sum():,})"
            if len(np.unique(labels)) < 2:
                assert shown not in found
                continue
            interval = found[shown]
            expected = roc_auc_score(labels, scores.probabilities[chosen])
            assert interval.value == pytest.approx(expected)
            assert interval.low <= interval.value <= interval.high


def test_slices_are_of_lengths_and_unknown_ids(softmax):
    found = slices(softmax)
    group, names = found["behaviours in the history"]
    store, samples = softmax.store, softmax.samples
    start, end = (store.column(f"sequences/history.{end}")[samples] for end in ("start", "end"))
    length = np.minimum(end.astype(int) - start, 4)  # data.max_history
    for i, name in enumerate(names):
        low, _, high = name.partition("–")
        assert ((length[group == i] >= int(low)) & (length[group == i] <= int(high or low))).all()
    group, _ = found["unknown ids"]
    ad, items = store.column("fields/item")[samples], store.column("events/history/item")
    unknown = [
        2 if ad[i] == 0 else int((items[max(start[i], end[i] - 4) : end[i]] == 0).any())
        for i in range(len(samples))
    ]
    assert group.tolist() == unknown


def test_control_functions_are_those_of_the_layers():
    s = np.linspace(-3, 3, 61)[:, None]
    dice = Dice(alpha_init=0.0)  # α = 0: p(s)·s
    variables = {"params": {"alpha": np.zeros(1)}}
    variables["batch_stats"] = {"mean": np.array([0.4]), "variance": np.array([2.5])}
    expected = dice.apply(variables, s, np.ones(61, bool), train=False)
    np.testing.assert_allclose(dice_control(s, 0.4, 2.5) * s, expected, atol=1e-6)
    p = PReLU(alpha_init=0.0)
    expected = p.apply(nn.FrozenDict({"params": {"alpha": np.zeros(1)}}), s)
    np.testing.assert_allclose(prelu_control(s) * s, expected, atol=1e-7)


def test_control_functions_have_the_learned_statistics(softmax, scored):
    learned = statistics(softmax)
    data = control_functions(softmax).data
    assert {name.rpartition(" ")[0] for name in data} == set(learned)
    for name, (mean, variance) in data.items():
        layer, _, unit = name.rpartition(" ")
        assert mean == learned[layer][0][int(unit)]
        assert variance == learned[layer][1][int(unit)]
    assert control_functions(scored).caption.endswith(
        "Dice." if scored is softmax else ("PReLU.", "Dice.")
    )


def test_curves_are_read_from_the_log(tmp_path):
    curves = read_curves(with_log(tmp_path))
    assert curves["validation", "auc"] == [(1.0, 0.6), (2.0, 0.7)]
    # Of the steps since the evaluation before: 2 of loss 0.8 and 4 of 0.5.
    assert curves["train", "log_loss"] == [(1.0, pytest.approx(0.6)), (2.0, pytest.approx(0.4))]
    assert np.isnan(curves["validation", "user_weighted_auc"][0][1])
    scored = [
        {"step": step, "split": f"{split}_curve", "log_loss": 1.0, "auc": 0.5,
         "user_weighted_auc": 0.25}
        for step in (6, 12)
        for split in ("train", "test")
    ]  # fmt: skip
    both = read_curves(with_log(tmp_path, [*CURVES, *scored]))
    assert both["train", "log_loss"] == [(1.0, 1.0), (2.0, 1.0)]
    assert both["test", "user_weighted_auc"] == [(1.0, 0.25), (2.0, 0.25)]


def test_curves_of_several_runs_have_their_folders_names(tmp_path):
    folders = [with_log(tmp_path / a / "run") for a in "xy"]
    picture = learning_curves(folders)
    assert list(picture.data) == ["x/run", "y/run"]
    assert [len(ax.lines) for ax in picture.figure.axes if ax.get_visible()] == [2, 2, 2]
    assert "y/run: 0.6500 after epoch 2" in picture.caption
    assert list(learning_curves(folders, ["none", "mba"]).data) == ["none", "mba"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; expected the folder of a trained run"),
        ('{"step": 1, "split": "train"}\n', "not the log of a run .KeyError: 'epoch'"),
        ('{"step": 1, "sp', "a line is damaged"),
        ("", "no loss of an evaluation"),
    ],
)
def test_a_log_without_curves_is_an_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DinError, match=message):
        read_curves(tmp_path)


def test_telling_samples_have_weights_that_depend_on_the_ad(softmax):
    (first,) = telling_samples(softmax, "history")
    samples = softmax.samples
    others = np.random.default_rng(0).permutation(samples)
    own = softmax.weights["history"]
    other = softmax.weights_of(samples, softmax.ads_of(others))["history"]
    change = {
        i: np.abs(own.weights[own.of(i)] - other.weights[own.of(i)]).sum() / 2  # both sum to 1
        for i in range(len(samples))
        if own.of(i).stop - own.of(i).start > 1  # histories are cut to 4: none has 6
    }
    assert change[first] == pytest.approx(max(change.values()), rel=1e-4)
    users = softmax.scores.users[telling_samples(softmax, "history", 5)]
    assert len(set(users.tolist())) == 5


def test_figure_5_has_the_weights_and_ctr_of_each_candidate(scored):
    picture = activation_weights(scored, row=7, candidates=[11, 12])
    test = scored.store.split("test")
    assert picture.data["ads"].tolist() == [test[7], test[11], test[12]]
    own = scored.weights_of(np.array([test[7]]))["history"]
    np.testing.assert_allclose(picture.data["weights"][0], own.weights, atol=1e-6)
    assert picture.data["ctr"][0] == pytest.approx(scored.scores.probabilities[7], abs=1e-6)
    # Row 7 with the ad of row 11, column by column.
    store = scored.store
    columns = {
        f"fields/{name}": store.column(f"fields/{name}").copy() for name in ("item", "price")
    }
    for column in columns.values():
        column[test[7]] = column[test[11]]
    if len(store.column("fields/tags")):  # of a multi-hot field offsets would shift: same item
        same = store.column("fields/tags.offsets")
        a, b = (store.column("fields/tags")[same[i] : same[i + 1]] for i in (test[7], test[11]))
        if a.tolist() == b.tolist():
            p = scored.probabilities(store.with_columns(columns))[7]
            assert picture.data["ctr"][1] == pytest.approx(p, abs=1e-6)
    others = other_candidates(scored, test[7], "history", 2)
    items = store.column("fields/item")[[test[7], *others]]
    assert len(set(items.tolist())) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": -1}, r"--row=-1: expected the row of a sample, 0 to 299"),
        ({"row": 0, "candidates": [300]}, r"--candidates=300: expected the row"),
        ({"sequence": "views"}, "no activation weights of a sequence 'views'; there are: history"),
    ],
)
def test_a_sample_that_is_not_there_is_an_error(softmax, options, message):
    with pytest.raises(DinError, match=message):
        activation_weights(softmax, **options)


def test_intensity_is_the_sum_over_the_behaviours(log_folder, scored):
    data = interest_intensity(scored).data
    found = scored.weights["history"]
    normalized = scored.run.config.model.attention.normalize == "softmax"
    w = 1 / (1 + np.exp(-found.raw.astype(np.float64))) if normalized else found.weights
    of_sample = [w[found.of(i)].sum() for i in range(len(scored.samples))]
    users = scored.scores.users
    expected = [np.mean(np.array(of_sample)[users == u]) for u in np.unique(users)]
    np.testing.assert_allclose(data["by_user"], expected, rtol=1e-4, atol=1e-5)


def test_importance_is_the_loss_by_a_permutation(softmax):
    """Against columns that are replaced in the store, and scored."""
    losses = importance(softmax, repeats=1)
    assert set(losses) == {name for name in features_read(softmax)}
    assert {"hour", "age", "item", "price", "behaviours: history"} <= set(losses)
    column = softmax.store.column("fields/hour").copy()
    order = np.random.default_rng(0).permutation(softmax.samples)
    column[softmax.samples] = softmax.store.column("fields/hour")[order]
    permuted = softmax.store.with_columns({"fields/hour": column})
    users, labels = softmax.scores.users, softmax.scores.labels
    p = softmax.run.evaluator("test", permuted).probabilities(softmax.state)
    expected = user_weighted_auc(users, labels, softmax.scores.probabilities)
    expected -= user_weighted_auc(users, labels, p)
    assert losses["hour"] == [pytest.approx(expected, abs=1e-9)]
    assert abs(expected) > 1e-4


def test_figure_6_has_the_users_ctr_of_each_good(softmax):
    """Goods of the log have several tags: the first is their category."""
    data = embeddings(softmax, row=3).data
    assert len(data["place"]) == len(data["ctr"]) == len(data["category"]) > 10
    assert 0 < data["ctr"].min() < data["ctr"].max() < 1
    store = softmax.store
    items, offsets = store.column("fields/item"), store.column("fields/tags.offsets")
    goods = dict(zip(data["rows"].tolist(), data["category"].tolist(), strict=True))
    for row, tag in goods.items():
        of_good = np.flatnonzero(items == row)[0]
        assert store.column("fields/tags")[offsets[of_good]] == tag
    with pytest.raises(DinError, match=r"no ad field 'shop' .* are: item, "):
        embeddings(softmax, category="shop")


def test_tsne_keeps_clusters_apart():
    rng = np.random.default_rng(0)
    centres = np.repeat(10 * rng.standard_normal((3, 8)), 20, axis=0)
    place = tsne(centres + rng.standard_normal((60, 8)))
    of = np.repeat(np.arange(3), 20)
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (of[distance.argmin(axis=1)] == of).all()


def test_all_slices_are_drawn(softmax):
    picture = auc_by_slice(softmax)
    assert len(picture.figure.axes) == 3
