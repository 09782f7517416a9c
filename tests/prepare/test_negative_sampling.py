"""Negatives against the conditional law that plain loops over a small log give."""

import numpy as np
import pytest
from scipy import stats

from din_jax.errors import DinError
from din_jax.prepare import negative_sampling
from din_jax.prepare.negative_laws import Catalogue, read_law
from din_jax.prepare.negative_sampling import Interactions, Positives, sample

ITEMS = 12
CATEGORY = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 3])
COUNT = np.array([900, 400, 0, 100, 300, 200, 0, 60, 40, 10, 5, 1])
LAWS = ("uniform", "popularity", "popularity^0.75", "popularity^-1", "in_category")


def log():
    """(user, item, time), grouped by user; times are few and in no order.

    User 3 has taken all of category 0 at the end, user 4 all items but 10 and 11, user 5 one item.
    """
    rng = np.random.default_rng(0)
    rows = [(u, int(i), int(t)) for u in range(3) for i, t in rng.integers(8, size=(9, 2))]
    rows += [(3, item, time) for time, item in enumerate([1, 0, 1, 2, 9, 3])]
    rows += [(4, int(item), int(item) % 3) for item in rng.permutation(10)]
    return np.array([*rows, (5, 10, 2)]).T


def interactions(user, item, time):
    return Interactions(np.append(0, np.cumsum(np.bincount(user))), item, time)


def catalogue(by):
    return Catalogue(read_law(by), ITEMS, count=COUNT, category=CATEGORY)


def draw(by, user, item, time, per_positive, *, exclude="before", seed=0, rows=slice(None)):
    positives = Positives(user[rows], item[rows], time[rows])
    rng = np.random.default_rng(seed)
    return sample(
        catalogue(by),
        interactions(user, item, time),
        positives,
        per_positive,
        exclude=exclude,
        rng=rng,
    )


def expected_law(by, exclude, rows, positive):
    """([ITEMS] the probabilities of a positive's negatives, whether outside its category)."""
    user, item, time = positive
    taken = {i for u, i, t in rows if u == user and (exclude == "ever" or t <= time)}
    weight = np.zeros(ITEMS)
    for i in set(range(ITEMS)) - taken - {item}:
        if by == "in_category":
            weight[i] = CATEGORY[i] == CATEGORY[item]
        elif by == "uniform":
            weight[i] = 1
        elif COUNT[i]:
            weight[i] = float(COUNT[i]) ** float([*by.split("^"), "1"][1])
    if by == "in_category" and not weight.any():
        return expected_law("uniform", exclude, rows, positive)[0], True
    return weight / weight.sum(), False


def assert_law(drawn, law):
    """The drawn items have this distribution, and none that it excludes."""
    counts = np.bincount(drawn, minlength=ITEMS)
    assert counts[law == 0].sum() == 0
    possible = law > 0
    if possible.sum() > 1:
        result = stats.chisquare(counts[possible], law[possible] * counts.sum())
        assert result.pvalue > 1e-4, (counts, law * counts.sum())


@pytest.mark.parametrize("exclude", ["before", "ever"])
@pytest.mark.parametrize("by", LAWS)
def test_each_positive_has_the_law_over_what_its_user_has_not_taken(by, exclude):
    user, item, time = log()
    rows = list(zip(user, item, time, strict=True))
    result = draw(by, user, item, time, 4000, exclude=exclude)
    outside = 0
    for positive, drawn in zip(rows, result.item, strict=True):
        law, is_outside = expected_law(by, exclude, rows, positive)
        assert_law(drawn, law)
        outside += is_outside
    assert result.outside_category == outside
    assert (outside > 0) == (by == "in_category")


@pytest.mark.parametrize("by", LAWS)
def test_the_law_holds_over_many_positives_and_their_draws_are_independent(by):
    n = 20_000
    positives = Positives(np.arange(n) // 4, np.full(n, 4), np.arange(n))
    none = Interactions(np.zeros(n // 4 + 1, int), np.empty(0, int), np.empty(0, int))
    pairs = sample(catalogue(by), none, positives, 2, rng=np.random.default_rng(0)).item
    law, _ = expected_law(by, "ever", [], (0, 4, 0))
    for column in pairs.T:
        assert_law(column, law)
    for first, second in ((pairs[:, 0], pairs[:, 1]), (pairs[:-1, 0], pairs[1:, 0])):
        together = np.zeros((ITEMS, ITEMS))
        np.add.at(together, (first, second), 1)
        seen = law * n > 300
        together = together[seen][:, seen]
        assert stats.chi2_contingency(together).pvalue > 1e-4


def test_users_who_have_nearly_everything_get_the_exact_law_of_the_rest():
    items = 2000
    rest = np.array([7, 700, 1999])  # what the second user lacks; the first also lacks item 0
    count = np.full(items, 10**6)
    count[rest] = [1, 2, 5]
    taken = np.setdiff1d(np.arange(items), rest)
    log = Interactions(
        np.array([0, len(taken) - 1, 2 * len(taken) - 1]),
        np.append(taken[1:], taken),
        np.zeros(2 * len(taken) - 1, int),
    )
    user = np.arange(80) % 2
    positives = Positives(user, np.full(80, 1), np.arange(80))
    for by, power in (("uniform", 0), ("popularity", 1), ("popularity^3", 3)):
        law = Catalogue(read_law(by), items, count=count)
        drawn = sample(law, log, positives, 50, rng=np.random.default_rng(0)).item
        for one, lacks in enumerate((np.append(0, rest), rest)):
            of_user = drawn[user == one].ravel()
            assert np.isin(of_user, lacks).all()
            counts = np.bincount(np.searchsorted(lacks, of_user), minlength=len(lacks))
            weight = (count[lacks] / count[lacks].max()) ** float(power)
            expected = weight / weight.sum() * len(of_user)
            seen = expected > 1e-3
            assert counts[~seen].sum() == 0
            if seen.sum() > 1:
                assert stats.chisquare(counts[seen], expected[seen]).pvalue > 1e-4


@pytest.mark.parametrize("by", LAWS)
def test_blocks_order_and_other_positives_change_nothing(by, monkeypatch):
    user, item, time = log()
    whole = draw(by, user, item, time, 8)
    again = draw(by, user, item, time, 8)
    np.testing.assert_array_equal(whole.item, again.item)
    assert (draw(by, user, item, time, 8, seed=1).item != whole.item).any()
    for block in (1, 10, 100):
        monkeypatch.setattr(negative_sampling, "_BLOCK", block)
        small = draw(by, user, item, time, 8)
        np.testing.assert_array_equal(whole.item, small.item)
        assert small.outside_category == whole.outside_category
    monkeypatch.undo()
    some = np.random.default_rng(5).permutation(len(user))[:20]
    np.testing.assert_array_equal(draw(by, user, item, time, 8, rows=some).item, whole.item[some])
    np.testing.assert_array_equal(draw(by, user, item, time, 3).item, whole.item[:, :3])
    # Within a user, the order of the interactions is irrelevant.
    order = np.lexsort((item, user))
    result = draw(by, user[order], item[order], time[order], 8).item
    np.testing.assert_array_equal(result, whole.item[order])


def test_any_types_of_whole_numbers():
    user, item, time = log()
    whole = draw("uniform", user, item, time, 4).item
    small = draw("uniform", user.astype(np.uint8), item.astype(np.uint16), time.astype(np.int16), 4)
    np.testing.assert_array_equal(small.item, whole)
    wide = Interactions(*(a.astype(np.uint64) for a in interactions(user, item, time)))
    positives = Positives(*(a.astype(np.uint64) for a in (user, item, time)))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(
        sample(catalogue("uniform"), wide, positives, 4, rng=rng).item, whole
    )
    with pytest.raises(ValueError, match="whole numbers, not float64"):
        draw("uniform", user, item, time / 2, 4)


def test_the_alias_table_gives_each_item_its_weight():
    rng = np.random.default_rng(0)
    for weight in (
        np.ones(7),
        rng.random(1000) ** 8,
        rng.pareto(0.8, 100_000),
        np.array([0.0, 3.0, 0.0, 1.0, 1.0, 1.0]),
        np.array([2.0]),
    ):
        counts = np.ceil(weight / weight.max() * 10**9).astype(np.int64)
        table = Catalogue(read_law("popularity"), len(counts), count=counts)
        probability = table._keep + np.bincount(
            table._alias, weights=1 - table._keep, minlength=len(counts)
        )
        mean = counts / counts.mean()
        np.testing.assert_allclose(probability, mean, rtol=1e-7)
        assert (table._keep[counts == 0] == 0).all()


def test_users_who_have_taken_everything_are_an_error():
    user, item = np.repeat([0, 1, 2], ITEMS), np.tile(np.arange(ITEMS), 3)
    time = np.tile(np.arange(ITEMS), 3)
    with pytest.raises(DinError, match=r"^no negatives: 3 of the users have .* by the time of"):
        draw("uniform", user, item, time, 2)
    some = time < ITEMS - 1  # before the last item
    assert draw("uniform", user, item, time, 2, rows=some).item.shape == (33, 2)
    message = r'3 of the users .* be drawn; .*: exclude = "before", or leave these users out$'
    for by in ("uniform", "in_category"):
        with pytest.raises(DinError, match=message):
            draw(by, user, item, time, 2, exclude="ever", rows=some)
    unseen = np.isin(item, np.flatnonzero(COUNT == 0)) & (user > 0)
    with pytest.raises(DinError, match=r'2 of the users .*: by = "uniform", or leave'):
        draw("popularity", user[~unseen], item[~unseen], time[~unseen], 2, rows=user[~unseen] > 0)


def test_invalid_arguments():
    user, item, time = log()
    for by in ("popularty", "popularity^", "popularity^x", "popularity^inf", "uniform^2", 3, None):
        with pytest.raises(DinError, match=r"^by = .*; expected \"uniform\", \"popularity\""):
            read_law(by)
    assert read_law("popularity^0.75").exponent == 0.75
    assert read_law("popularity").exponent == 1
    with pytest.raises(DinError, match=r"per_positive = 0; expected a whole number from 1 on"):
        draw("uniform", user, item, time, 0)
    with pytest.raises(DinError, match=r"exclude = 'after'; expected one of before, ever"):
        draw("uniform", user, item, time, 1, exclude="after")
    with pytest.raises(ValueError, match="expected items from 0 to 11"):
        draw("uniform", user, item + 2, time, 1)
    with pytest.raises(DinError, match=r"no item to draw .* that occur in training"):
        Catalogue(read_law("popularity"), 3, count=np.zeros(3, int))
    with pytest.raises(ValueError, match="needs an array of 3 items"):
        Catalogue(read_law("in_category"), 3, count=np.ones(3, int))
