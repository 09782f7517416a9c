import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from din_jax.prepare import click_log
from din_jax.prepare.click_log_bounds import Bayes, Rates

RATES = Rates(click_of_taste=0.4, click_of_other=0.1, ads_for_user=0.3, views_for_user=0.2)
POPULARITY = np.array([0.4, 0.25, 0.2, 0.1, 0.05])


def shown(trait, tastes, for_user):
    of_tastes = sum(POPULARITY[t] for t in tastes)
    mine = POPULARITY[trait] / of_tastes if trait in tastes else 0
    return (1 - for_user) * POPULARITY[trait] + for_user * mine


def click(trait, tastes):
    return RATES.click_of_taste if trait in tastes else RATES.click_of_other


def click_probability(views, clicks, passed, ad, *, given_the_clicks):
    """Bayes' rule one factor at a time, over the ten sets of three tastes of five traits."""
    clicked_and_shown = all_shown = 0.0
    for tastes in itertools.combinations(range(len(POPULARITY)), 3):
        weight = 1.0
        for view in views:
            weight *= shown(view, tastes, RATES.views_for_user)
        any_click = sum(shown(t, tastes, RATES.ads_for_user) * click(t, tastes) for t in range(5))
        for trait in clicks:
            weight *= shown(trait, tastes, RATES.ads_for_user) * click(trait, tastes)
            weight /= any_click if given_the_clicks else 1
        for trait in passed:
            weight *= shown(trait, tastes, RATES.ads_for_user) * (1 - click(trait, tastes))
        weight *= shown(ad, tastes, RATES.ads_for_user)
        clicked_and_shown += weight * click(ad, tastes)
        all_shown += weight
    return clicked_and_shown / all_shown


@pytest.mark.parametrize(
    ("views", "clicks", "passed", "ad"),
    [
        ([], [], [], 0),
        ([], [4, 4, 3], [0, 0, 1], 4),
        ([0, 1, 4], [0, 2], [2, 3, 3], 2),
        ([2] * 300, [2] * 30, [0] * 40, 0),
    ],
)
def test_probabilities_against_a_sum_by_hand(views, clicks, passed, ad):
    counts = [np.bincount(traits, minlength=5)[None] for traits in (views, clicks, passed)]
    bayes = Bayes(POPULARITY, RATES)
    by_history = bayes.of_history(counts[0], counts[1], np.array([ad]))
    assert by_history[0] == pytest.approx(
        click_probability(views, clicks, [], ad, given_the_clicks=True), rel=1e-9
    )
    by_impressions = bayes.of_impressions(*counts, np.array([ad]))
    assert by_impressions[0] == pytest.approx(
        click_probability(views, clicks, passed, ad, given_the_clicks=False), rel=1e-9
    )


@pytest.mark.parametrize("histories", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_a_generated_log_is_calibrated_and_who_knows_more_ranks_better(histories):
    kind = click_log.KINDS[histories]._replace(samples=20_000)
    of = click_log.generate(kind, seed=1)
    late = np.arange(17_500, 20_000)
    label = of.impressions["click"].to_numpy()
    clicks, passed = (
        click_log._earlier(of.user, of.trait, counted, len(of.popularity))[late]
        for counted in (label, 1 - label)
    )
    label, views, ad = label[late], of.views[of.user[late]], of.trait[late]
    bayes = Bayes(of.popularity, kind.rates)
    by_history = bayes.of_history(views, clicks, ad)
    by_impressions = bayes.of_impressions(views, clicks, passed, ad)
    for p in by_history, by_impressions:
        assert p.min() > kind.rates.click_of_other - 1e-9
        assert p.max() < kind.rates.click_of_taste + 1e-9
        # Of the ads with a probability about p, the fraction p is clicked.
        for part in np.array_split(np.argsort(p), 5):
            error = label[part].mean() - p[part].mean()
            assert abs(error) < 4 * np.sqrt((p[part] * (1 - p[part])).mean() / len(part))
    count = (views + clicks)[np.arange(len(ad)), ad]
    aucs = [
        roc_auc_score(label, score)
        for score in (count, by_history, by_impressions, of.probability[late])
    ]
    assert aucs == sorted(aucs) and aucs[0] > 0.54 and aucs[1] > aucs[0] + 0.02
