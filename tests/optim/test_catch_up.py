"""Rows that catch up, against dense Optax: every row in every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from din_jax.nn.present_rows import Rows, apply_row_updates, gather_rows, present_rows
from din_jax.optim import catch_up as catch_up_module
from din_jax.optim.catch_up import catch_up
from din_jax.optim.dense import dense_adam, dense_rmsprop, dense_sgd
from din_jax.optim.mba import mba_decay, on_tables

ROWS = {"sparse": 30, "dense": 7}  # how each table is updated
COUNTS = {name: jnp.arange(float(rows)) % 5 for name, rows in ROWS.items()}
IDS, STEPS = 6, 300
RATE = 0.01
WARM_UP = optax.warmup_exponential_decay_schedule(0.0, RATE, 40, 50, 0.5)
STAIRS = optax.exponential_decay(RATE, 30, 0.5, staircase=True)
CLIP = optax.clip_by_global_norm(0.3)
MBA = on_tables(mba_decay(0.5), tuple(ROWS))
# Each kind of optimizer, of schedule, and of what stands before.
CASES = {
    "adam": (dense_adam(RATE), ()),
    "adam-warm-up-mba": (dense_adam(WARM_UP), (MBA,)),
    "adam-stairs-clip-mba": (dense_adam(STAIRS), (CLIP, MBA)),
    "adam-other-moments": (dense_adam(WARM_UP, 0.8, 0.99, 1e-6), (CLIP,)),
    "momentum": (dense_sgd(RATE, 0.9), (CLIP,)),
    "nesterov-stairs-mba": (dense_sgd(STAIRS, 0.8, nesterov=True), (MBA,)),
    "rmsprop": (dense_rmsprop(RATE), ()),
    "rmsprop-momentum": (dense_rmsprop(STAIRS, momentum=0.9, centered=True), (CLIP,)),
    "rmsprop-nesterov": (
        dense_rmsprop(WARM_UP, momentum=0.7, nesterov=True, initial_scale=0.5),
        (),
    ),
}
FAST = ("adam-stairs-clip-mba",)
RATES = {"sparse": 0.3, "dense": 2.0}  # factors of the learning rates, in the fast case


def parameters(rng):
    tables = {name: 0.1 * rng.standard_normal((rows, 3)) for name, rows in ROWS.items()}
    params = {"params": 0.1 * rng.standard_normal(4), "tables": tables}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def gradient(tables, noise):
    """A gradient that depends on the weights, without cancelling anywhere."""
    return {name: noise[name] * (1.5 + jnp.sin(tables[name])) for name in tables}


def catching_up(optimizer):
    """The initial state, a step on the rows of a batch alone, and `settle`."""

    def init(params):
        return params, optimizer.init(params), jnp.zeros(ROWS["sparse"], jnp.int32)

    def step(carry, batch):
        params, state, scratch = carry
        _, sparse, scratch = present_rows(batch["ids"], batch["mask"], scratch)
        rows = {"sparse": sparse, "dense": Rows(batch["present"]["dense"])}
        tables = params["tables"]
        before = tables | {"sparse": gather_rows(tables["sparse"], sparse)}
        weights, caught_up = optimizer.catch_up(state, before, rows)
        noise = batch["noise"] | {"sparse": gather_rows(batch["noise"]["sparse"], sparse)}
        updates, state = optimizer.update(
            {"params": batch["params"], "tables": gradient(weights, noise)},
            state,
            {"params": params["params"], "tables": weights},
            rows=rows,
            counts={name: gather_rows(COUNTS[name], rows[name]) for name in ROWS},
            caught_up=caught_up,
        )
        params = {
            "params": params["params"] + updates["params"],
            "tables": {
                name: apply_row_updates(
                    tables[name], rows[name], updates["tables"][name], weights[name]
                )
                for name in ROWS
            },
        }
        return (params, state, scratch), (sparse, weights["sparse"])

    def settle(carry):
        params, state, scratch = carry
        tables, state = optimizer.settle(params["tables"], state)
        return params | {"tables": tables}, state, scratch

    return init, step, settle


def dense_step(optimizer, carry, batch):
    params, state = carry
    updates, state = optimizer.update(
        {"params": batch["params"], "tables": gradient(params["tables"], batch["noise"])},
        state,
        params,
        present=batch["present"],
        counts=COUNTS,
    )
    return (optax.apply_updates(params, updates), state), params["tables"]["sparse"]


@functools.cache
def compiled(case):
    """`STEPS` steps with rows that catch up, and `STEPS` of dense Optax."""
    dense, before = CASES[case]
    rates = RATES if case in FAST else {}
    init, step, settle = catching_up(catch_up(dense, before, rates))
    scaled = optax.stateless(
        lambda u, _: u | {"tables": {n: rates.get(n, 1) * x for n, x in u["tables"].items()}}
    )
    plain = optax.chain(*before, dense.optimizer, scaled)

    @jax.jit
    def both(params, batches):
        carry, (rows, weights) = jax.lax.scan(step, init(params), batches)
        reference, all_weights = jax.lax.scan(
            functools.partial(dense_step, plain), (params, plain.init(params)), batches
        )
        # At which weights the two differentiated in each step.
        at = jnp.clip(rows.ids, 0, ROWS["sparse"] - 1)
        expected = jnp.take_along_axis(all_weights, at[:, :, None], axis=1)
        off = jnp.where(rows.present[:, :, None], jnp.abs(weights - expected), 0).max()
        off /= jnp.maximum(jnp.abs(all_weights).max(), 1)
        return off, settle(carry), settle(settle(carry)), carry, reference

    return both


def batches_of(rng, magnitude, rarity):
    """Ids of which some are frequent and some rare, with padding; gradients of any magnitude."""
    popularity = rng.random((STEPS, IDS)) ** rarity
    ids = (popularity * ROWS["sparse"]).astype(np.int32)
    mask = rng.random((STEPS, IDS)) < rng.choice([0, 0.5, 1], (STEPS, 1))
    present = {name: np.zeros((STEPS, rows), bool) for name, rows in ROWS.items()}
    steps = np.broadcast_to(np.arange(STEPS)[:, None], ids.shape)
    present["sparse"][steps[mask], ids[mask]] = True
    present["dense"] = rng.random(present["dense"].shape) < 0.2
    scale = 10.0 ** rng.uniform(*magnitude, (STEPS, 1, 1))
    noise = {
        name: np.float32(scale * rng.standard_normal((STEPS, rows, 3)) * present[name][..., None])
        for name, rows in ROWS.items()
    }
    params = rng.standard_normal((STEPS, 4)).astype(np.float32)
    return {"ids": ids, "mask": mask, "present": present, "noise": noise, "params": params}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in FAST else pytest.mark.long) for c in CASES]
)
@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(-1, 0), (-3, -3), (-8, -7), (-10, -8), (-12, 2)]),
    st.sampled_from([1, 4, 12]),
)
def test_rows_that_catch_up_are_those_of_dense_optax(case, seed, magnitude, rarity):
    rng = np.random.default_rng(seed)
    params = parameters(rng)
    off, settled, twice, behind, reference = compiled(case)(
        params, batches_of(rng, magnitude, rarity)
    )
    assert off < 1e-5, "the weights that the steps differentiated at"
    for a, b in zip(jax.tree.leaves(settled[0]), jax.tree.leaves(reference[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1))
    jax.tree.map(np.testing.assert_array_equal, settled, twice)  # nothing is left to catch up
    never = np.asarray(behind[1].last_step["sparse"]) == 0
    np.testing.assert_array_equal(
        settled[0]["tables"]["sparse"][never], params["tables"]["sparse"][never]
    )
    assert not settled[1].last_step["sparse"][never].any()
    # The moments, on their own scale.
    for a, b in zip(jax.tree.leaves(settled[1].inner), jax.tree.leaves(reference[1]), strict=True):
        if len(np.atleast_1d(b)) == ROWS["sparse"]:
            a, b = a[~never], b[~never]
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max(initial=0))


def test_rows_catch_up_however_many_steps_pass(monkeypatch):
    """Sums are kept of the last steps only: whoever settles in time never misses older ones."""
    monkeypatch.setattr(catch_up_module, "CAPACITY", 128)
    monkeypatch.setattr(catch_up_module, "_ROWS_AT_ONCE", 13)  # chunks that overlap
    dense = dense_adam(RATE, 0.5, 0.9)
    init, step, settle = catching_up(catch_up(dense))
    plain = optax.with_extra_args_support(dense.optimizer)
    rng = np.random.default_rng(1)
    params, batches = parameters(rng), batches_of(rng, (-1, 0), 12)

    @jax.jit
    def steps(carry, batches):
        return jax.lax.scan(step, carry, batches)[0]

    reference, _ = jax.jit(
        lambda carry: jax.lax.scan(functools.partial(dense_step, plain), carry, batches)
    )((params, plain.init(params)))
    settle = jax.jit(settle)
    carry = late = init(params)
    for begin in range(0, STEPS, 100):
        part = jax.tree.map(lambda x, b=begin: x[b : b + 100], batches)
        carry, late = settle(steps(carry, part)), steps(late, part)
    np.testing.assert_allclose(
        carry[0]["tables"]["sparse"], reference[0]["tables"]["sparse"], rtol=1e-5, atol=1e-5
    )

    last = np.asarray(late[1].last_step["sparse"])
    table = np.asarray(settle(late)[0]["tables"]["sparse"])
    too_late = (last > 0) & (last <= STEPS - 128)
    assert 0 < too_late.sum() < (last > 0).sum()
    wrong = np.isnan(table).any(axis=1)
    assert wrong[too_late].all(), "not a number that is wrong in silence"
    np.testing.assert_allclose(
        table[~wrong], reference[0]["tables"]["sparse"][~wrong], rtol=1e-5, atol=1e-5
    )


def test_settling_copies_no_table():
    optimizer, rows = catch_up(dense_adam(RATE)), 300_007
    params = {"params": jnp.zeros(1), "tables": {"t": jnp.zeros((rows, 2))}}
    state = jax.eval_shape(optimizer.init, params)
    settle = jax.jit(optimizer.settle, donate_argnums=(0, 1))
    memory = settle.lower(params["tables"], state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * state.sums.size * 4 + rows * 4
    assert memory.alias_size_in_bytes > rows * 7 * 4, "weights, two moments, last steps"


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (optax.add_decayed_weights(0.1), "changes a gradient of zero; .* `mba_decay`"),
        (optax.trace(0.9), "has a state of their own"),
        (optax.clip_by_block_rms(0.01), "adding rows of zeros changes"),
    ],
)
def test_what_moves_absent_rows_may_not_stand_before(before, message):
    params = parameters(np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        catch_up(dense_adam(RATE), (CLIP, before)).init(params)
