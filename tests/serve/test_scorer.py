"""The Scorer on raw requests against the evaluation of the store's samples."""

import concurrent.futures
import math

import numpy as np
import pytest
from behavior_vectors import behavior_vectors
from untrained import prepare_log, random_run

from din_jax.errors import DinError
from din_jax.export.encoding import InvalidRequest
from din_jax.export.exporting import export_run
from din_jax.plots.recombined import recombined
from din_jax.plots.scored_run import ScoredRun
from din_jax.serve.ranking import ranking
from din_jax.serve.scorer import Scorer
from din_jax.training.trained import evaluate


class Log:
    """The log's rows as requests."""

    def __init__(self, folder):
        self.frame = prepare_log(folder)
        random_run(folder / "store", folder / "run")
        self.scores = evaluate(folder / "run", "test")
        export_run(folder / "run", folder / "model", platforms=("cpu",))
        self.model = folder / "model"
        self.tags = [[f"t{t}" for t in range(k % 4)] for k in range(60)]
        self.ages = dict(
            line.split(",")[:2] for line in (folder / "users.csv").read_text().splitlines()[1:]
        )
        self.rows = self.frame.rows(named=True)

    def ad(self, row):
        item = row["item"]
        return {"item": item, "tags": self.tags[int(item[1:])], "price": row["price"]}

    def user(self, place):
        """The arguments of a request but the candidates: all clicks before, the oldest first."""
        row = self.rows[place]
        user, now = row["user"], row["time"]
        clicks = [r for r in self.rows if r["user"] == user and r["time"] < now and r["click"]]
        return {
            "user": {"age": int(self.ages[str(user)]), "likes": self.tags[user]},
            "context": {"hour": row["hour"]},
            "behaviors": {"history": [self.ad(r) | {"time": r["time"]} for r in clicks]},
            "time": now,
        }


@pytest.fixture(scope="module")
def a_log(tmp_path_factory):
    return Log(tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def scorer(a_log):
    return Scorer(a_log.model, max_candidates=8, max_users=2)


def test_requests_have_the_probabilities_of_their_samples(a_log, scorer):
    programs = scorer.programs
    test = range(len(a_log.rows) - len(a_log.scores.probabilities), len(a_log.rows))
    lengths = set()
    for place in test[::23]:
        request = a_log.user(place)
        lengths.add(min(len(request["behaviors"]["history"]), 5))
        expected = a_log.scores.probabilities[place - test.start]
        (found,) = scorer.score(**request, candidates=[a_log.ad(a_log.rows[place])])
        assert found == pytest.approx(expected, abs=1e-6)
    assert 5 in lengths, "longer histories than max_history"
    assert np.std(a_log.scores.probabilities) > 0.05
    assert scorer.programs == programs, "nothing compiles after the start"


def test_candidates_are_scored_as_if_each_were_alone(a_log, scorer):
    visitor = scorer.user(**a_log.user(2800))
    ads = [a_log.ad(row) for row in a_log.rows[:19]]
    together = visitor.score(ads)
    alone = [visitor.score([ad])[0] for ad in ads]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    columns = {name: [ad[name] for ad in ads] for name in ads[0]}
    np.testing.assert_array_equal(visitor.score(columns), together)
    assert len(visitor.score([])) == 0
    # Requests of several users, merged.
    places = (2800, 1, 2999)
    encoded = [scorer.user(**a_log.user(p)).encoded for p in places]
    merged = scorer.score_encoded([(user, scorer.encoder.ads(ads)) for user in encoded])
    for place, scored in zip(places, merged, strict=True):
        expected = scorer.score(**a_log.user(place), candidates=ads)
        np.testing.assert_allclose(scored.probability, expected, atol=1e-6)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: visitor.score(ads), range(8)):
            np.testing.assert_array_equal(found, together)


def test_ranking_is_by_ctr_to_the_alpha_times_bid(a_log, scorer):
    request = a_log.user(2900)
    ads = [a_log.ad(row) for row in a_log.rows[:5]]
    p = scorer.score(**request, candidates=ads)
    bids = [0.5, 2, 0, 1, 1e-3]
    ranked = scorer.rank(**request, candidates=ads, bids=bids, alpha=0.5)
    value = [math.sqrt(x) * b for x, b in zip(p, bids, strict=True)]
    assert ranked.order.tolist() == sorted(range(5), key=lambda i: -value[i])
    np.testing.assert_allclose(ranked.value, sorted(value, reverse=True))
    np.testing.assert_array_equal(ranked.probability, p[ranked.order])
    assert ranking(np.full(4, 0.5), None, 1.0).order.tolist() == [0, 1, 2, 3]
    for wrong in ([1.0], [1.0] * 6, [1.0] * 4 + [math.nan], [1.0] * 4 + [-1.0], ["1"] * 5):
        with pytest.raises(InvalidRequest, match="bids: expected"):
            scorer.rank(**request, candidates=ads, bids=wrong)
    with pytest.raises(InvalidRequest, match="alpha: 0; expected"):
        scorer.rank(**request, candidates=ads, alpha=0)


def test_explanations_are_of_the_behaviours_that_are_used(a_log, scorer):
    request = a_log.user(2950)
    history = request["behaviors"]["history"]
    assert len(history) > 4  # max_history
    ads = [a_log.ad(row) for row in a_log.rows[:3]]
    weights = scorer.explain(**request, candidates=ads)["history"]
    assert weights.shape == (3, len(history))
    assert not weights[:, :-4].any() and weights[:, -4:].all()
    # Given in another order they are the same behaviours: times say which is the latest.
    turned = request | {"behaviors": {"history": history[::-1]}}
    np.testing.assert_array_equal(
        scorer.explain(**turned, candidates=ads)["history"], weights[:, ::-1]
    )
    late = [*history, history[0] | {"time": request["time"] + 1}]
    found = scorer.explain(**request | {"behaviors": {"history": late}}, candidates=ads)["history"]
    np.testing.assert_array_equal(found, np.pad(weights, ((0, 0), (0, 1))))


def test_explained_weights_recompose_the_interest(a_log, scorer):
    """Eq. 3 in float64: Σ w_j e_j, w as explained, is the interest of the run's own model."""
    run = ScoredRun.load(a_log.model.parent / "run")
    test = run.store.split("test")
    samples = np.array(test)[::29]
    of_samples = recombined(run.store, samples)
    interest = np.concatenate(
        [
            outputs.aux["interest"]["history"][batch.weight > 0]
            for outputs, batch in run.outputs(of_samples)
        ]
    )
    start, end = run.history("history", samples)
    first_row = len(a_log.rows) - len(test)  # the samples are the log's last rows, in order
    for i, sample in enumerate(samples):
        place = first_row + sample - test.start
        ad = a_log.ad(a_log.rows[place])
        weights = scorer.explain(**a_log.user(place), candidates=[ad])["history"][0]
        used = weights[len(weights) - (end[i] - start[i]) :].astype(np.float64)
        e = behavior_vectors(run.run, run.state, np.arange(start[i], end[i]))
        np.testing.assert_allclose(used @ e, interest[i], rtol=1e-5, atol=1e-5)
    assert np.abs(interest).max() > 0.1


def test_unknown_ids_count_and_null_is_a_value(a_log, scorer):
    request = a_log.user(2800)
    request["user"] = {"age": None, "likes": ["t1", "new"]}
    ad = a_log.ad(a_log.rows[0])
    assert scorer.user(**request).encoded.unknown == 1
    ads = [ad | {"item": "new"}, ad | {"item": None}, ad | {"price": None, "tags": None}]
    encoded = scorer.encoder.ads(ads)
    assert encoded.unknown == 1
    p = scorer.score(**request, candidates=ads)
    assert p[0] == p[1] and np.isfinite(p).all()


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"user": {"age": 3}}, "user.likes", "missing"),
        ({"user": {"age": 3, "likes": [], "sex": 1}}, "user.sex", "unknown; expected: age, likes"),
        ({"user": {"age": "3", "likes": []}}, "user.age", "'3'; expected a number"),
        ({"user": {"age": 3, "likes": "t1"}}, "user.likes", "'t1'; expected a list of ids"),
        ({"user": []}, "user", "expected an object"),
        ({"context": {"hour": True}}, "context.hour", "True; expected an id"),
        ({"context": {"hour": math.nan}}, "context.hour", "nan; expected an id"),
        ({"context": {"hour": [3]}}, "context.hour", r"\[3\]; expected an id"),
        ({"behaviors": {"clicks": []}}, "behaviors.clicks", "unknown; expected: history"),
        ({"behaviors": {"history": 3}}, "behaviors.history", "expected a list of objects"),
        ({"behaviors": {"history": [{"item": "i1"}]}}, "behaviors.history[0].tags", "missing"),
        (
            {"behaviors": {"history": {"item": ["i1"], "tags": [[]], "price": []}}},
            "behaviors.history",
            "different lengths: item 1, tags 1, price 0",
        ),
        (
            {"behaviors": {"history": {"item": ["i1"], "tags": [[]], "price": [1]}}},
            "behaviors.history",
            "time: missing",
        ),
        (
            {"behaviors": {"history": {"item": ["i"], "tags": [[]], "price": [1], "time": ["x"]}}},
            "behaviors.history.time",
            "'x'; expected seconds",
        ),
        ({"time": None}, "time", "missing"),
        ({"candidates": [{"item": "i1", "tags": []}]}, "candidates[0].price", "missing"),
        ({"candidates": [3]}, "candidates[0]", "expected an object of item, tags, price"),
        (
            {"candidates": {"item": ["i1"], "tags": [[]], "price": [math.inf]}},
            "candidates.price",
            "inf; expected a finite number",
        ),
        ({"candidates": {"item": "i1"}}, "candidates.item", "expected a list"),
    ],
)
def test_a_request_that_cannot_be_scored_names_the_field(a_log, scorer, change, field, message):
    request = a_log.user(2800) | {"candidates": [a_log.ad(a_log.rows[0])]} | change
    with pytest.raises(InvalidRequest, match=message) as caught:
        scorer.score(**request)
    assert caught.value.field == field
    assert isinstance(caught.value, DinError)
