"""The transforms of numbers, against scikit-learn's."""

import json

import numpy as np
import pytest
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from din_jax.data.numbers import MOST_DEVIATIONS, TRANSFORMS, NumberTransform, fit
from din_jax.errors import DinError

RNG = np.random.default_rng(0)
TRAIN = {
    "normal": RNG.normal(3, 20, 5000),
    "skewed": RNG.lognormal(2, 1, 5000) - 3,
    "few": np.array([2.0, 5.0, -1.0, 2.5]),
    "many equal": np.concatenate([[-4.0, 9.0], np.repeat([0.5, 2.0, 7.0], [10, 900, 90])]),
}
NEW = np.array([-1e9, -30.0, -0.5, 0.0, 0.5, 2.0, 2.2, 7.0, 8.0, 1e16])


def scaled(train, x):
    return StandardScaler().fit(train[:, None]).transform(x[:, None])[:, 0]


def log1p(x):
    return np.sign(x) * np.log1p(np.abs(x))


def by_scikit_learn(transform, train, x):
    if transform == "standard":
        return scaled(train, x)
    if transform == "log1p":
        return scaled(log1p(train), log1p(x))
    count = min(256, len(train))
    fitted = QuantileTransformer(n_quantiles=count, subsample=None).fit(train[:, None])
    return (2 * fitted.transform(x[:, None])[:, 0] - 1) * np.sqrt(3)


@pytest.mark.parametrize("transform", ["standard", "log1p", "quantile"])
@pytest.mark.parametrize("name", TRAIN)
def test_transforms_are_those_of_scikit_learn(transform, name):
    train = TRAIN[name]
    x = np.concatenate([train, NEW])
    actual = fit(np.concatenate([train, [np.nan, np.inf]]), transform).apply(x)
    assert actual.dtype == np.float32
    expected = by_scikit_learn(transform, train, x)
    expected = np.clip(expected, -MOST_DEVIATIONS, MOST_DEVIATIONS)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)


def test_large_whole_numbers_keep_their_differences():
    x = RNG.integers(1, 40, 1000).astype(np.float64)
    actual = fit(1e15 + x, "standard").apply(1e15 + x)
    np.testing.assert_allclose(actual, (x - x.mean()) / x.std(), atol=0.01)  # the mean is rounded


def test_equal_numbers_have_the_middle_of_their_ranks():
    # scikit-learn ranks the least and the greatest outside all others.
    fitted = fit(np.repeat([0.5, 2.0, 7.0], [10, 900, 90]), "quantile")
    fractions = (fitted.apply([0.5, 2.0, 7.0, 0.0, 9.0]) / np.sqrt(3) + 1) / 2
    # To a quantile of 256.
    np.testing.assert_allclose(fractions, [0.005, 0.46, 0.955, 0.005, 0.955], atol=1 / 255)


def test_none_is_the_number_itself():
    x = np.array([1.5, -2.25, 0, 1e30, np.nan])
    np.testing.assert_array_equal(fit(x[:0], "none").apply(x), x.astype(np.float32))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    "train",
    [
        [0.1] * 7,
        [5.0],
        [0.0, -0.0],
        [1e300, -1e300, 1.0, 2.0],
        [1.7e308, -1.7e308],
        [5e-324, 0.0],
        [1e-310, 1e-311, 1e-312],
        [np.nan, 3.0, np.inf, 3.0],
    ],
)
def test_all_finite_numbers_give_finite_ones_of_either_sign(transform, train):
    extreme = [1.7e308, 1e300, 1, 1e-320, 0, -1e-320, -1, -1e300, -1.7e308]
    with np.errstate(all="raise", under="ignore"):
        fitted = fit(train, transform)
        x = fitted.apply(extreme)
    assert np.isfinite(x).all() and (np.diff(x) <= 0).all()
    if transform != "none":
        assert np.abs(x).max() <= MOST_DEVIATIONS
        finite = [v for v in train if np.isfinite(v)]
        if len(set(finite)) == 1:  # a constant
            np.testing.assert_array_equal(fitted.apply(finite), 0)
    assert np.isnan(fitted.apply([np.nan, np.inf, -np.inf])).all()


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_survives_json(transform):
    fitted = fit(TRAIN["skewed"], transform)
    assert NumberTransform.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted


@pytest.mark.parametrize("transform", ["standard", "log1p", "quantile"])
def test_numbers_that_are_all_missing_are_refused(transform):
    with pytest.raises(DinError, match="price: all 2 numbers of training are missing, and"):
        fit([np.nan, np.inf], transform, name="price")


def test_an_unknown_transform_is_named():
    with pytest.raises(DinError, match="price: transform 'log'; expected none, standard, log1p"):
        fit([1.0], "log", name="price")
