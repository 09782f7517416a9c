import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn import metrics as sklearn_metrics

from din_jax import metrics


@st.composite
def scored(draw):
    """Samples with ties, users of one class, and users in no order."""
    n = draw(st.integers(1, 60))
    user = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    label = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    score = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    return np.array(user), np.array(label), np.array(score) / 4


def pairs_in_order(label, score):
    """The AUC by its definition: every pair of a positive and a negative."""
    won = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in score[label == 1]
        for n in score[label == 0]
    ]
    return np.mean(won) if won else np.nan


@settings(deadline=None)
@given(scored())
def test_auc_counts_pairs(data):
    _, label, score = data
    np.testing.assert_allclose(metrics.auc(label, score), pairs_in_order(label, score), atol=1e-12)


@settings(deadline=None)
@given(scored())
def test_user_auc_equals_scikit_learn_user_by_user(data):
    user, label, score = data
    result = metrics.user_auc(user, label, score)
    two_classes = [u for u in np.unique(user) if 0 < label[user == u].mean() < 1]
    assert result.users.tolist() == two_classes
    assert result.skipped == len(np.unique(user)) - len(two_classes)
    for i, u in enumerate(two_classes):
        mine = user == u
        assert result.auc[i] == pytest.approx(
            sklearn_metrics.roc_auc_score(label[mine], score[mine]), abs=1e-9
        )
        assert result.impressions[i] == mine.sum()
        assert result.positives[i] == label[mine].sum()


def test_weightings_by_hand():
    # User 1: 3 impressions, 1 positive, AUC 1. User 2: 5 impressions, 3 positives, AUC ½.
    # User 3 has clicks only and is skipped.
    user = np.array([1, 2, 1, 2, 1, 2, 2, 2, 3])
    label = np.array([1, 1, 0, 0, 0, 1, 1, 0, 1])
    score = np.array([0.9, 0.5, 0.1, 0.5, 0.2, 0.5, 0.5, 0.5, 0.7])
    result = metrics.user_auc(user, label, score)
    assert result.weighted("impressions") == pytest.approx((3 * 1 + 5 * 0.5) / 8)
    assert result.weighted("positives") == pytest.approx((1 * 1 + 3 * 0.5) / 4)
    assert result.weighted("users") == pytest.approx(0.75)
    assert result.skipped == 1


def test_no_user_with_two_classes_is_not_a_number():
    result = metrics.user_auc(np.array([1, 2]), np.array([1, 0]), np.array([0.1, 0.2]))
    assert np.isnan(result.weighted("impressions"))
    assert result.skipped == 2
    assert metrics.user_auc(np.array([]), np.array([]), np.array([])).skipped == 0


@pytest.mark.parametrize(
    ("users", "labels", "scores", "message"),
    [
        ([1, 1], [0, 1], [0.1], "2 users, 2 labels, 1 scores"),
        ([1, 1], [0, 2], [0.1, 0.2], "labels must be 0 or 1"),
        ([1, 1], [0, 0.5], [0.1, 0.2], "labels must be 0 or 1"),
        ([1, 1], [0, 1], [0.1, np.nan], "1 of 2 scores are NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(users, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metrics.user_auc(np.array(users), np.array(labels), np.array(scores))


@settings(deadline=None)
@given(scored())
def test_log_loss_equals_scikit_learn(data):
    _, label, score = data
    p = np.clip(score, 0.01, 0.99)
    expected = sklearn_metrics.log_loss(label, p, labels=[0, 1])
    assert metrics.log_loss(label, p) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(scored(), st.integers(0, 2**32 - 1))
def test_integer_weights_are_repeated_samples(data, seed):
    user, label, score = data
    times = np.random.default_rng(seed).integers(0, 4, len(user))
    found = metrics.all_metrics(user, label, score, times)
    plain = metrics.all_metrics(user, label, score)
    assert {k: found[k] for k in plain} == pytest.approx(plain, nan_ok=True)
    weighted = [name for name in found if name not in plain]
    assert weighted[:3] == list(metrics.SELECTABLE[3:])
    if not times.any():
        assert all(np.isnan(found[name]) for name in weighted[:-1])
        return
    repeated = metrics.all_metrics(*(np.repeat(x, times) for x in data))
    for name in weighted[:-1]:
        expected = repeated[name.removeprefix("weighted_")]
        assert found[name] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    # A user without weight has neither class.
    gone = len(np.unique(user)) - len(np.unique(user[times > 0]))
    assert found["weighted_users_skipped"] == repeated["users_skipped"] + gone


@settings(max_examples=20, deadline=None)
@given(scored(), st.integers(0, 2**32 - 1))
def test_fractional_weights_are_scikit_learns(data, seed):
    user, label, score = data
    weights = np.random.default_rng(seed).choice([0.01, 0.3, 0.7, 2.5], len(user))
    weights = weights.astype(np.float32)
    p = np.clip(score, 0.01, 0.99)
    found = metrics.all_metrics(user, label, p, weights)
    expected = sklearn_metrics.log_loss(label, p, sample_weight=weights, labels=[0, 1])
    assert found["weighted_log_loss"] == pytest.approx(expected, rel=1e-6)
    bins = np.minimum((p * 10).astype(int), 9)
    gaps = [abs(np.sum((weights * (p - label))[bins == b], dtype=float)) for b in range(10)]
    total = weights.sum(dtype=float)
    assert found["weighted_expected_calibration_error"] == pytest.approx(sum(gaps) / total)
    if label.any():
        expected = np.average(p, weights=weights) / np.average(label, weights=weights)
        assert found["weighted_calibration_ratio"] == pytest.approx(expected, rel=1e-6)
    by_user = []
    for u in [*np.unique(user), None]:
        own = np.ones(len(user), bool) if u is None else user == u
        if 0 < label[own].mean() < 1:
            value = sklearn_metrics.roc_auc_score(
                label[own], score[own], sample_weight=weights[own]
            )
            by_user.append((value, weights[own].sum(dtype=float)))
    if by_user:
        auc, _ = by_user.pop()
        assert found["weighted_auc"] == pytest.approx(auc, abs=1e-9)
    if by_user:
        aucs, impressions = zip(*by_user, strict=True)
        expected = np.average(aucs, weights=impressions)
        assert found["weighted_user_weighted_auc"] == pytest.approx(expected, abs=1e-9)
    else:
        assert np.isnan(found["weighted_user_weighted_auc"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1, 1], "3 weights for 2 samples"),
        ([1, -1], "finite numbers from 0 on"),
        ([1, np.nan], "finite numbers from 0 on"),
        ([1, np.inf], "finite numbers from 0 on"),
    ],
)
def test_what_is_no_weight_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        metrics.all_metrics(*np.array([[1, 1], [0, 1], [0.1, 0.2]]), np.array(weights))


def test_log_loss_is_finite_at_certainty():
    assert metrics.log_loss(np.array([0, 1]), np.array([1.0, 1.0])) == pytest.approx(
        -np.log(1e-15) / 2, rel=0.01
    )


def test_calibration_by_hand():
    label = np.array([1, 0, 0, 0])
    p = np.array([0.5, 0.5, 0.05, 0.15])
    assert metrics.calibration_ratio(label, p) == pytest.approx(0.3 / 0.25)
    # Bins [0, 0.1): 0.05 against 0; [0.1, 0.2): 0.15 against 0; [0.5, 0.6): 0.5 against 0.5.
    assert metrics.expected_calibration_error(label, p) == pytest.approx((0.05 + 0.15) / 4)
    # The upper edge belongs to the last bin.
    assert metrics.expected_calibration_error(np.array([1]), np.array([1.0])) == 0


def test_rela_impr_gives_the_papers_figures():
    # Table 5: base 0.5970; DIN 0.6029, which the paper gives as 6.08 %.
    assert metrics.rela_impr(0.6029, 0.5970) == pytest.approx(6.08, abs=0.01)
    # Table 3, MovieLens: Wide&Deep 0.7304 against 0.7263, 1.81 %.
    assert metrics.rela_impr(0.7304, 0.7263) == pytest.approx(1.81, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_paired_difference_covers_what_a_bootstrap_covers(seed):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(400), 4)
    label = np.tile([1, 0, 1, 0], 400)
    ours = label + rng.standard_normal(1600)
    theirs = 0.5 * label + rng.standard_normal(1600)
    a, b = metrics.user_auc(user, label, ours), metrics.user_auc(user, label, theirs)
    paired = metrics.paired_difference(a, b)
    assert paired.mean == pytest.approx(a.weighted("impressions") - b.weighted("impressions"))
    drawn = (a.auc - b.auc)[rng.integers(400, size=(2000, 400))].mean(axis=1)
    assert [paired.low, paired.high] == pytest.approx(
        np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.01
    )


def test_a_paired_difference_needs_the_same_users():
    label = np.array([0, 1, 0, 1])
    a = metrics.user_auc(np.array([1, 1, 2, 2]), label, label)
    b = metrics.user_auc(np.array([1, 1, 3, 3]), label, label)
    with pytest.raises(ValueError, match="same samples"):
        metrics.paired_difference(a, b)


def test_all_metrics_carry_their_names():
    user, label = np.array([1, 1, 2, 2, 3]), np.array([0, 1, 1, 0, 1])
    p = np.array([0.2, 0.8, 0.4, 0.6, 0.5])
    found = metrics.all_metrics(user, label, p)
    assert found["user_weighted_auc"] == 0.5
    assert found["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(label, p))
    assert found["log_loss"] == pytest.approx(sklearn_metrics.log_loss(label, p))
    assert (found["samples"], found["users"], found["users_skipped"]) == (5, 3, 1)
