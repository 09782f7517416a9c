import numpy as np
import pytest
from scipy import stats

from din_jax.intervals import bootstrap
from din_jax.metrics import auc, user_auc, user_weighted_auc


def test_intervals_cover_the_truth_at_their_nominal_rate():
    """Users of their own click rates: an interval over samples would be far too short."""
    rng = np.random.default_rng(0)
    trials, users, samples = 300, 60, 20
    covered = naive = 0
    for _ in range(trials):
        rate = rng.beta(2, 2, users)  # the truth is 1/2
        y = rng.random((users, samples)) < rate[:, None]
        user = np.repeat(np.arange(users), samples)
        clicks = y.ravel().astype(float)
        interval = bootstrap(
            user, lambda w, y=clicks: float(np.average(y, weights=w)), resamples=200
        )
        covered += interval.low <= 0.5 <= interval.high
        error = 1.96 * clicks.std() / np.sqrt(clicks.size)
        naive += abs(clicks.mean() - 0.5) <= error
    # 95 % ± 4 standard errors of 300 trials, and a little for the percentile method.
    low, high = stats.binom.interval(1 - 1e-4, trials, 0.945)
    assert low <= covered <= high
    assert naive / trials < 0.8


def test_auc_and_its_paired_difference_are_covered():
    rng = np.random.default_rng(1)
    trials, users, samples = 80, 60, 6
    covered = paired = 0
    # The scores of positives are d higher: AUC = Φ(d / √2), and the second model's is chance.
    truth = stats.norm.cdf(1 / np.sqrt(2))
    for _ in range(trials):
        user = np.repeat(np.arange(users), samples)
        y = np.tile([0, 1], users * samples // 2)
        shift = np.repeat(rng.standard_normal(users), samples)  # of all scores of a user
        good = y + rng.standard_normal(len(y)) + shift
        chance = rng.standard_normal(len(y))
        a = bootstrap(
            user, lambda w, y=y, s=good, u=user: user_weighted_auc(u, y, s, w), resamples=80
        )
        d = bootstrap(
            user,
            lambda w, y=y, s=good, c=chance, u=user: (
                user_weighted_auc(u, y, s, w) - user_weighted_auc(u, y, c, w)
            ),
            resamples=80,
        )
        covered += a.low <= truth <= a.high
        paired += d.low <= truth - 0.5 <= d.high
    low, high = stats.binom.interval(1 - 1e-4, trials, 0.935)
    assert low <= covered <= high
    assert low <= paired <= high


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.96), (0.8, 1.2816)])
def test_the_interval_of_a_mean_is_that_of_the_normal_law(level, z):
    rng = np.random.default_rng(4)
    x = rng.standard_normal(400)
    interval = bootstrap(
        np.arange(400),
        lambda w: float(np.average(x, weights=w)),
        resamples=4000,
        level=level,
    )
    half = z * x.std() / np.sqrt(400)
    np.testing.assert_allclose(
        [interval.low, interval.high], [x.mean() - half, x.mean() + half], atol=0.008
    )
    assert interval.value == pytest.approx(x.mean())


def test_a_draw_is_users_with_all_their_samples():
    user = np.array([7, 7, 3, 3, 3, 9])
    seen = []

    def statistic(weights):
        seen.append(weights)
        return weights.sum()

    bootstrap(user, statistic, resamples=50)
    assert (seen[0] == 1).all()
    for weights in seen[1:]:
        per_user = {u: set(weights[user == u]) for u in (3, 7, 9)}
        assert all(len(of_user) == 1 for of_user in per_user.values())
        assert sum(of_user.pop() for of_user in per_user.values()) == 3
    assert len({tuple(weights) for weights in seen}) > 3


def test_weights_of_draws_are_repeated_samples():
    """A weighted metric is the metric of the drawn samples themselves, which are repeated."""
    rng = np.random.default_rng(2)
    user, y, p = rng.integers(9, size=200), rng.integers(2, size=200), rng.random(200)
    drawn = rng.integers(9, size=9)
    weights = np.bincount(drawn, minlength=9)[user].astype(float)
    index = np.concatenate([np.flatnonzero(user == u) for u in drawn])
    copies = np.concatenate([np.full((user == u).sum(), i) for i, u in enumerate(drawn)])
    assert auc(y, p, weights) == pytest.approx(auc(y[index], p[index]))
    expected = user_auc(copies, y[index], p[index]).weighted("impressions")
    assert user_weighted_auc(user, y, p, weights) == pytest.approx(expected)


def test_nothing_to_draw_gives_nan():
    assert np.isnan(bootstrap(np.zeros(5), lambda w: 0.5)[1:]).all()
    assert np.isnan(bootstrap(np.arange(5), lambda w: float("nan"))[1:]).all()
