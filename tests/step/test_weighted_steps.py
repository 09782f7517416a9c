"""A sample of weight w trains as w equal samples do, on one device and on several."""

import jax
import numpy as np
import pytest
from runs import tiny_config
from states import assert_same_state
from step_states import arbitrary_state
from weighted_stores import with_rows_repeated, with_weights

from din_jax.data.counts import sample_counts
from din_jax.data.packing import Packer
from din_jax.step.state import row_owners
from din_jax.training.run import open_run

SAMPLES, ROWS, HISTORY = 8, 32, 3  # a sample has a weight of up to 4


def run_on(store, devices, **keys):
    options = {
        "devices": devices,
        "placement": "sharded",
        "model.name": "din",
        "model.activation": "dice",
        "model.without": ("shop", "age", "category"),
        "model.dice.momentum": 0.5,
        "data.max_history": HISTORY,
        "train.batch_size": SAMPLES,
        "regularizer.name": "mba",
        "regularizer.rate": 2.0,
        # A step is then minus the gradient, and Eq. 7's decay.
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 1.0,
    }
    return open_run(tiny_config(store, **options | keys))


def packed(store, groups):
    """A batch of one shape, whatever it holds; of several groups, one for each device."""
    packer = Packer(store, HISTORY)
    capacities = dict.fromkeys(packer.axes, ROWS * HISTORY)
    batches = packer.pack(groups, ROWS, [capacities] * len(groups))
    return batches[0] if len(groups) == 1 else jax.tree.map(lambda *x: np.stack(x), *batches)


class Steps:
    """A run's step from its initial state, with other n_j than its store's."""

    def __init__(self, run, n):
        tables = run.regularizer.counts.keys()
        counts = {name: n[name].astype(np.float32) for name in tables}
        self.run = run._replace(regularizer=run.regularizer.replace(counts=counts))
        self.step = self.run.step()
        self.first = jax.tree.map(np.asarray, arbitrary_state(run))
        sharded = run.placement.sharded
        self.is_sharded = jax.tree.map(
            lambda owner: owner in sharded, row_owners(self.first, run.optimizer)
        )

    def after(self, batch):
        """(loss, state) after a step on the batch."""
        state = jax.tree.map(
            lambda leaf, sharded: self.run.placement.put(np.array(leaf), sharded=sharded),
            self.first,
            self.is_sharded,
        )
        state, loss = self.step(state, batch)
        return float(loss), state.replace(scratch={})


def assert_same_steps(one, expected):
    (loss, state), (expected_loss, expected_state) = one, expected
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_same_state(expected_state, state, rtol=1e-5)


@pytest.mark.parametrize(
    ("devices", "block"),
    [
        (1, 0),
        pytest.param(1, 7, marks=pytest.mark.long),
        pytest.param(4, 0, marks=pytest.mark.long),
    ],
)
def test_a_step_on_weights_is_one_on_repeated_samples(planted_store, devices, block):
    """Loss, gradients, Dice's averages, n_j and the decay, with the goods' table sparse."""
    run = run_on(planted_store, 1, **{"model.attention.block": block})
    rng, store = np.random.default_rng(0), run.store
    times = rng.integers(1, 5, len(store))
    begins = np.cumsum(times) - times
    weighted, repeated = with_weights(store, times), with_rows_repeated(store, times)
    n, n_repeated = (
        sample_counts(other, "train", max_history=HISTORY) for other in (weighted, repeated)
    )
    assert all((n[name] == n_repeated[name]).all() for name in n)
    one = Steps(run, n)
    many = Steps(run_on(planted_store, devices), n) if devices > 1 else one
    cuts = [5, 5, 7][: devices - 1]  # of four devices, one has no sample
    assert one.first.scratch.keys() == {"item"}
    for _ in range(2):
        samples = rng.choice(len(store.split("train")), SAMPLES, replace=False)
        rows = np.concatenate([begins[i] + np.arange(times[i]) for i in samples])
        batch = packed(repeated, [rows])
        assert batch.weight.sum() == times[samples].sum()
        expected = one.after(batch)
        assert_same_steps(many.after(packed(weighted, np.split(samples, cuts))), expected)
        # Fractions whose sum is below 1: the loss, and so its gradient, has no scale.
        fractions = with_weights(store, times / 64)
        assert_same_steps(many.after(packed(fractions, np.split(samples, cuts))), expected)
        ignored = one.after(packed(store, [samples]))
        assert abs(ignored[0] - expected[0]) > 1e-3 * expected[0]
