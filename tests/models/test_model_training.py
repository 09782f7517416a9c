"""One config of each model in training: against the oracles, and what changes nothing."""

import cross_oracles
import jax
import numpy as np
import oracles
import pytest
from compiling import quick_jit
from hypothesis import given, strategies as st
from model_batches import LARGER, REAL, SCHEMA, make_batch
from model_cases import (
    TRAINED,
    buckets_of,
    close,
    close_trees,
    config_of,
    examples,
    f64,
    learned,
    model_of,
    oracle,
    schema_of,
    scores,
    seeds,
    setup,
    training,
)
from model_checks import assert_matches_the_oracle

from din_jax.models.features import ITEM_BIAS, bias_table
from din_jax.models.registry import build_model

trained = pytest.mark.parametrize("name", TRAINED)


def assert_trees_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# Against the oracles


@trained
@pytest.mark.parametrize("seed", range(2))
def test_models_in_training_and_evaluation_match_the_oracle(name, seed):
    assert_matches_the_oracle(name, seed)


@pytest.mark.parametrize("name", ["base mean", "din extras", "din options"])
def test_moving_averages_match_the_oracle(name):
    samples, batch, variables = setup(name, 3)
    stats = learned(name, variables, batch)["stats"]
    compared = 0
    for part, layers in oracle(name, samples, variables, train=True)["entered"].items():
        path = ("Head_0", "mlp") if part == "mlp" else (f"activation_unit_{part}",)
        old, new = variables["batch_stats"], stats
        for key in path:
            old, new = old.get(key, {}), new.get(key, {})
        for i, rows in enumerate(layers if new else []):
            mean, variance = oracles.mean_and_variance(rows)
            for statistic, batch_value in ("mean", mean), ("variance", variance):
                before = f64(old[f"activation_{i}"][statistic])
                after = new[f"activation_{i}"][statistic]
                close(after, 0.8 * before + 0.2 * batch_value)
                compared += 1
    assert compared == len(jax.tree.leaves(stats)) > 0


@trained
def test_loss_and_gradient_match_the_oracle(name):
    # Every parameter and table moves at once in random directions; what the oracle's loss changes
    # by is the gradient's product with the direction.
    samples, batch, variables = setup(name, 4)
    step = learned(name, variables, batch)
    labels = [s["label"] for s in samples]

    def oracle_loss(weights):
        logits = oracle(name, samples, {**variables, **weights}, train=True)["logits"]
        return oracles.negative_log_likelihood(logits, labels)

    weights = f64({k: variables[k] for k in ("params", "tables")})
    np.testing.assert_allclose(step["loss"], oracle_loss(weights), rtol=1e-5)
    rng = np.random.default_rng(5)
    for _ in range(4):
        direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), weights)
        up, down = (
            oracle_loss(jax.tree.map(lambda x, d, h=h: x + h * d, weights, direction))
            for h in (1e-6, -1e-6)
        )
        pairs = zip(*map(jax.tree.leaves, (step["gradients"], direction)), strict=True)
        change = sum(np.vdot(g, d) for g, d in pairs)
        np.testing.assert_allclose(change, (up - down) / 2e-6, rtol=1e-3, atol=1e-4)


def test_item_bias_adds_to_the_click_alone():
    _, batch, variables = setup("din extras", 6)
    shifted = {**variables, "tables": {**variables["tables"]}}
    shifted["tables"][ITEM_BIAS] = variables["tables"][ITEM_BIAS] + np.float32(1)
    before = scores("din extras", variables, batch)
    after = scores("din extras", shifted, batch)
    close(after[:REAL] - before[:REAL], np.tile([0, 1], (REAL, 1)))


# Padding and capacities


@trained
@examples
@given(seeds)
def test_content_of_padding_changes_nothing(name, seed):
    samples, batch, variables = setup(name, 7)
    other = make_batch(samples, schema_of(name), np.random.default_rng(seed))
    assert_trees_equal(learned(name, variables, batch), learned(name, variables, other))


def test_capacities_change_nothing_but_rounding():
    name = "din extras"
    for seed in 8, 9:
        samples, batch, variables = setup(name, seed)
        other = make_batch(samples, SCHEMA, np.random.default_rng(seed), LARGER)
        one, two = (learned(name, variables, x) for x in (batch, other))
        close_trees(one, two, atol=1e-5)


@trained
def test_rows_outside_the_batch_have_no_gradient(name):
    samples, batch, variables = setup(name, 10)
    schema = schema_of(name)
    gradients = learned(name, variables, batch)["gradients"]["tables"]
    present = {table: set() for table in gradients}
    for sample in samples:
        ids_of = [(f.table, f.name, sample["fields"][f.name]) for f in schema.fields] + [
            (f.table, f"{s.name}-{f.name}", behavior[f.name])
            for s in schema.sequences
            for behavior in sample["sequences"][s.name]
            for f in s.fields
        ]
        # Of every id: the table of the data set, and the one of logistic regression.
        looked_up = [(table, ids) for table, _, ids in ids_of]
        looked_up += [(f"{field}-weight", ids) for _, field, ids in ids_of]
        most = config_of(name).wide.ad_values
        looked_up += [
            (table, cross_oracles.crossed(sample, schema, table, buckets, most))
            for table, buckets in buckets_of(name).items()
        ]
        for table, ids in looked_up:
            if table in gradients:
                present[table] |= {ids} if isinstance(ids, int) else set(ids)
    if ITEM_BIAS in gradients:
        bias = config_of(name).item_bias or schema.sequences[0].fields[0].ad
        present[ITEM_BIAS] = {s["fields"][bias] for s in samples}
    for field in config_of(name).bias_fields:
        ids_of_samples = [s["fields"][field] for s in samples]
        present[bias_table(field)] = {
            i for ids in ids_of_samples for i in ([ids] if isinstance(ids, int) else ids)
        }
    absent = 0
    for table, gradient in gradients.items():
        for row in range(len(gradient)):
            assert (row in present[table]) == bool(gradient[row].any()), (table, row)
            absent += row not in present[table]
    assert absent > 0


@trained
def test_batch_of_empty_histories_is_finite(name):
    samples, batch, variables = setup(name, 11, empty=True)
    step = learned(name, variables, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(step))
    close(step["logits"], oracle(name, samples, variables, train=True)["logits"])
    for part in step["stats"]:
        if part != "Head_0":  # no behaviour, nothing to average
            assert_trees_equal(step["stats"][part], variables["batch_stats"][part])


@trained
def test_batch_without_a_real_sample_is_finite(name):
    samples, _, variables = setup(name, 12)
    batch = make_batch(samples[:0], schema_of(name), np.random.default_rng(12))
    step = learned(name, variables, batch)
    assert step["loss"] == 0
    assert all((x == 0).all() for x in jax.tree.leaves(step["gradients"]))
    assert_trees_equal(step["stats"], variables["batch_stats"])


# Order


@trained
@examples
@given(st.permutations(range(REAL)))
def test_order_of_samples_permutes_the_logits(name, order):
    samples, batch, variables = setup(name, 13)
    other = make_batch([samples[i] for i in order], schema_of(name), np.random.default_rng(14))
    one, two = learned(name, variables, batch), learned(name, variables, other)
    one["logits"] = one["logits"][list(order)]
    close_trees(two, one, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in TRAINED if not config_of(n).attention.position])
@examples
@given(st.integers(0, REAL - 1), seeds)
def test_order_of_behaviours_changes_nothing(name, which, seed):
    samples, batch, variables = setup(name, 15)
    rng = np.random.default_rng(seed)
    shuffled = {
        k: [history[i] for i in rng.permutation(len(history))]
        for k, history in samples[which]["sequences"].items()
    }
    other = [*samples[:which], {**samples[which], "sequences": shuffled}, *samples[which + 1 :]]
    one = scores(name, variables, batch)
    two = scores(name, variables, make_batch(other, schema_of(name), rng))
    close(two[:REAL], one[:REAL], atol=1e-5)


@trained
def test_score_of_a_sample_does_not_depend_on_the_others(name):
    samples, batch, variables = setup(name, 16)
    together = scores(name, variables, batch)
    for i, sample in enumerate(samples):
        alone = make_batch([sample], schema_of(name), np.random.default_rng(i))
        close(scores(name, variables, alone)[0], together[i], atol=1e-5)


# Devices


def test_model_over_mapped_axis_is_the_model_over_all_samples():
    # Four samples and two, and in the second part no behaviour at all in one sequence.
    name = "din options"
    samples, _, variables = setup(name, 17)
    samples = [
        {**s, "sequences": {**s["sequences"], "visits": s["sequences"]["visits"] if i < 4 else []}}
        for i, s in enumerate(samples)
    ]
    rng = np.random.default_rng(18)
    together = learned(name, variables, make_batch(samples, SCHEMA, rng))
    parts = [make_batch(part, SCHEMA, rng) for part in (samples[:4], samples[4:])]
    model = build_model(SCHEMA, config_of(name), "devices")
    mapped = quick_jit(jax.vmap(training(model, "devices"), in_axes=(None, 0), axis_name="devices"))
    (loss, (logits, _, stats)), gradients = mapped(
        variables, jax.tree.map(lambda *x: np.stack(x), *parts)
    )
    close(loss.sum(), together["loss"])
    close(np.concatenate([logits[0, :4], logits[1, :2]]), together["logits"])
    close_trees(stats, jax.tree.map(lambda x: np.stack([x, x]), together["stats"]))
    close_trees(jax.tree.map(lambda x: x.sum(0), gradients), together["gradients"])


# Lookups


@pytest.mark.parametrize("name", ["base mean", "din extras", "din options"])
def test_lookups_mask_all_padding(name):
    samples, batch, _ = setup(name, 20)
    looked_up = quick_jit(model_of(name).lookups)(batch)
    for lookups in looked_up.values():
        for where, lookup in lookups.items():
            assert lookup.ids.shape == lookup.mask.shape
            name_of, _, inner = where.partition(".")
            if inner:
                ids = [b[inner] for s in samples for b in s["sequences"][name_of]]
            else:
                bias = config_of(name).item_bias
                ids = [s["fields"][bias if where == ITEM_BIAS else where] for s in samples]
            if isinstance(ids[0], list):
                ids = [i for several in ids for i in several]
            assert lookup.ids[lookup.mask].tolist() == ids
