"""Every model on one user's candidates, from raw values to logits, against the oracles."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from compiling import quick_jit
from model_batches import draw_samples
from model_cases import CASES, close, config_of, draw_variables, oracle, schema_of
from oracles import WeightedIds

from din_jax.config import default_config
from din_jax.data.numbers import NumberTransform
from din_jax.data.transform import Transform
from din_jax.data.vocabularies import Fitted
from din_jax.export.building import scoring_by
from din_jax.export.encoding import Encoder
from din_jax.export.padding import pad

QUICK = ("din options", "din extras", "wide_deep", "numeric din", "released din dice", "deepfm")
NOW = 2**40


def encoder_of(name):
    schema = schema_of(name)
    timed = tuple(dataclasses.replace(s, times=True) for s in schema.sequences)
    read = tuple(f for f in schema.fields if not f.optional or "user_id" in asked(name))
    schema = dataclasses.replace(schema, fields=read, sequences=timed)
    tables = {
        t.name: Fitted(pl.Series([f"{t.name} {r}" for r in range(1, t.rows)]), np.zeros(0), 0)
        for t in schema.tables
    }
    numbers = {n.name: NumberTransform("none") for n in schema.numbers}
    ages = bool(config_of(name).attention.age)
    return Encoder(Transform(schema, tables, numbers), schema, 0, ages=ages)


def asked(name):
    return (*config_of(name).extra_fields, *config_of(name).bias_fields)


def raw(table, value):
    """The raw ids of rows; row 0 is some id that no vocabulary has."""
    if isinstance(value, WeightedIds):
        return [(raw(table, i), w) for i, w in zip(value, value.weights, strict=True)]
    if isinstance(value, list):
        return [raw(table, v) for v in value]
    return f"{table} {value}" if value else "another"


def request_of(encoder, sample):
    """The user and the ad of a sample as raw values, the behaviours in order of their ages."""
    schema = encoder.schema
    tables = {f.name: f.table for f in schema.fields}

    def values(fields):
        return {
            name: raw(tables[name], sample["fields"][name])
            if name in tables
            else sample["fields"][name]
            for name in fields
        }

    behaviors = {}
    for sequence in schema.sequences:
        rows = []
        for behavior in sample["sequences"][sequence.name]:
            row = {f.name: raw(f.table, behavior[f.name]) for f in sequence.fields}
            row |= {n.name: behavior[n.name] for n in sequence.numbers}
            rows.append(row | {"time": NOW - (2 ** behavior["age"] - 1 or 1)})
        behaviors[sequence.name] = rows
    fields = encoder.user_fields, encoder.context_fields, encoder.ad_fields
    return (*map(values, fields), behaviors)


def config_for(name):
    config = default_config()
    config.model = config_of(name)
    return config


def with_ages(rng, samples):
    """Ages from 2 seconds on, the oldest behaviour first."""
    for sample in samples:
        for history in sample["sequences"].values():
            ages = sorted((int(a) for a in rng.integers(1, 32, len(history))), reverse=True)
            for behavior, age in zip(history, ages, strict=True):
                behavior["age"] = age
    return samples


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.long) for n in CASES],
)
def test_candidates_have_the_logits_of_samples(name):
    rng = np.random.default_rng(8)
    encoder = encoder_of(name)
    samples = with_ages(rng, draw_samples(rng, schema_of(name)))
    variables = draw_variables(name, rng)
    weights = {**variables, "frequent": {}}
    function = quick_jit(scoring_by(config_for(name), schema_of(name)))
    visitors, ads = samples[:2], samples[2:5]

    requests = [request_of(encoder, s) for s in samples]
    users = [encoder.user(u, b, c, NOW) for u, c, _, b in requests[:2]]
    candidates = encoder.ads([ad for _, _, ad, _ in requests[2:5]])
    size = {axis: 3 + max(u.size[axis] for u in users) for axis in users[0].size}
    ads_size = {axis: 2 + n for axis, n in candidates.size.items()}
    arguments = pad(users, [candidates, candidates], encoder.schema, size, ads_size, 3)
    logits, activation = function(weights, *arguments)
    assert logits.shape == (3, 5)

    crossed = [
        {**visitor, "fields": visitor["fields"] | {n: ad["fields"][n] for n in encoder.ad_fields}}
        for visitor in visitors
        for ad in ads
    ]
    expected = oracle(name, crossed, variables, train=False)
    difference = expected["logits"][:, 1] - expected["logits"][:, 0]
    close(logits[:2, :3].reshape(-1), difference)
    weights_of = expected.get("weights", {})
    assert activation.keys() == {s for s, w in weights_of.items() if w}
    for sequence, of_samples in weights_of.items():
        for i, of_sample in enumerate(of_samples):
            found = activation[sequence][i // 3, i % 3]
            close(found[: len(of_sample)], of_sample)
            np.testing.assert_array_equal(found[len(of_sample) :], 0)
