"""What figures are drawn from, against the evaluation and against sums in float64."""

import jax
import numpy as np
import pytest
from batch_contents import unpacked
from behavior_vectors import behavior_vectors
from untrained import random_run

from din_jax.data.packing import Packer
from din_jax.errors import DinError
from din_jax.plots.control_functions import layer_inputs, statistics
from din_jax.plots.recombined import recombined
from din_jax.plots.scored_run import ScoredRun
from din_jax.training.trained import evaluate


def test_scores_are_those_of_the_evaluation(scored):
    expected = evaluate(scored.workdir, "test")
    np.testing.assert_array_equal(scored.scores.probabilities, expected.probabilities)
    assert scored.scores.metrics == expected.metrics


def test_outputs_are_of_the_model_that_is_scored(scored):
    p = []
    for outputs, batch in scored.outputs(recombined(scored.store, scored.samples)):
        p.append(1 / (1 + np.exp(-outputs.logits[batch.weight > 0].astype(np.float64))))
    np.testing.assert_allclose(np.concatenate(p), scored.scores.probabilities, atol=1e-6)


def test_activation_weights_recompose_the_interest(scored):
    """Eq. 3, in float64: Σ w_j e_j is the interest."""
    samples = scored.samples
    weights = scored.weights_of(samples)["history"]
    e = behavior_vectors(scored.run, scored.state, weights.events)
    interest = np.concatenate(
        [
            outputs.aux["interest"]["history"][batch.weight > 0]
            for outputs, batch in scored.outputs(recombined(scored.store, samples))
        ]
    )
    found = np.stack(
        [
            weights.weights[weights.of(i)].astype(np.float64) @ e[weights.of(i)]
            for i in range(len(samples))
        ]
    )
    assert np.abs(interest).max() > 0.1
    np.testing.assert_allclose(found, interest, rtol=1e-5, atol=1e-5)


def test_raw_outputs_are_those_before_the_softmax(softmax, log_folder):
    found = softmax.weights["history"]
    exponentials = np.exp(found.raw.astype(np.float64))
    total = np.repeat(found.sums(exponentials), np.diff(found.offsets))
    np.testing.assert_allclose(found.weights, exponentials / total, rtol=1e-5)
    raw = ScoredRun.load(log_folder / "raw").weights["history"]
    np.testing.assert_array_equal(raw.raw, raw.weights)


def test_a_model_without_activation_unit_says_so(base):
    with pytest.raises(DinError, match="'base' has no activation weights: only DIN"):
        _ = base.weights


def test_inputs_of_the_last_activation_give_the_logits(scored):
    """By Eq. 8 or 9 and the output layer, in float64."""
    params, name = scored.state.params["Head_0"]["mlp"], "Head_0/mlp/activation_0"
    alpha = np.asarray(params["activation_0"]["alpha"], np.float64)
    kernel, bias = (np.asarray(params["output"][part], np.float64) for part in ("kernel", "bias"))
    for outputs, batch in scored.outputs(
        recombined(scored.store, scored.samples), activations=True
    ):
        s, real = outputs.activation_inputs[name]
        assert real.tolist() == (batch.weight > 0).tolist()
        s = s.astype(np.float64)
        if name in statistics(scored):
            mean, variance = statistics(scored)[name]
            p = 1 / (1 + np.exp(-(s - mean) / np.sqrt(variance)))
        else:
            p = s > 0
        z = (p * s + (1 - p) * alpha * s) @ kernel + bias
        np.testing.assert_allclose((z[:, 1] - z[:, 0])[real], outputs.logits[real], atol=1e-4)


def test_inputs_computed_in_blocks_are_the_same(log_folder, tmp_path):
    random_run(log_folder / "store", tmp_path, **{"model.attention.block": 7})
    random_run(log_folder / "store", tmp_path / "whole")
    blocks, whole = (layer_inputs(ScoredRun.load(w), 50) for w in (tmp_path, tmp_path / "whole"))
    assert list(blocks) == list(whole)
    for name, s in whole.items():
        np.testing.assert_allclose(blocks[name], s, atol=1e-5)


def test_recombined_samples_have_the_features_of_others(rich):
    store, samples = rich
    rng = np.random.default_rng(0)
    of, film, views, genres = (rng.integers(len(samples), size=40) for _ in range(4))
    other = recombined(store, of, {"film": film, "views": views, "genres": genres})
    packer = Packer(other)
    lengths = packer.lengths(np.arange(40)).sum(axis=0)
    (batch,) = packer.pack([np.arange(40)], 40, [dict(zip(packer.axes, lengths, strict=True))])

    def behaviors(events, *names):
        return [{name: event[name] for name in names} for event in events]

    assert unpacked(jax.tree.map(np.asarray, batch)) == [
        {key: samples[i][key] for key in ("label", "user", "age", "hour")}
        | {"film": samples[film[k]]["film"], "genres": samples[genres[k]]["genres"]}
        | {"views": behaviors(samples[views[k]]["views"], "film", "genres")}
        | {"likes": behaviors(samples[i]["likes"], "film")}
        for k, i in enumerate(of)
    ]
    assert list(other.split("test")) == list(range(40))
