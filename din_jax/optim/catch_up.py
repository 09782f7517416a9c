"""Dense optimizers at the cost of the present rows: absent rows make up for what they missed.

A dense optimizer with a memory moves every row in every step; `row_sparse` leaves absent rows
alone. Here an absent row is left alone too, until it is looked up. It then makes up for the steps
since its last one: its gradient was zero in them, so that they are known (`din_jax.optim.dense`).

What its movement sums up depends on its last step and on no row. So each step adds its term to the
sums of the last steps before it, whatever the schedule of the learning rate, and a row looks the
sums up at its last step. The cost does not depend on how many steps it missed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey

from din_jax.nn.present_rows import Rows, gather_rows, scatter_rows
from din_jax.optim.dense import Dense
from din_jax.optim.learning_rate import scale_tables
from din_jax.optim.row_sparse import check_separable, checked_init, row_leaves, trial

CAPACITY = 1 << 16  # number of last steps for which sums are kept
_ZERO = 1e-30  # stands for a factor of zero, which has no logarithm
_ROWS_AT_ONCE = 1 << 14  # rows of the chunks in which a table is settled


class CatchUpState(NamedTuple):
    """The state of a `CatchUp`.

    Attributes:
      inner: the state of the optimizer; an absent row's is that of its last step.
      last_step: {table: int32[K]}, the step up to which a row has been brought; 0: it was never
        looked up.
      sums: float32[CAPACITY, n], the sums of the series for last step s, at s mod CAPACITY, without
        the term of `step`. (Adding it when the sums are next read, not when `step` is taken, spares
        a copy: XLA writes in place only what it has no reason to read afterwards.)
      step: int32 [], the number of steps taken.
    """

    inner: Any
    last_step: dict[str, jax.Array]
    sums: jax.Array
    step: jax.Array


class CaughtUp(NamedTuple):
    """What `catch_up` hands to `update`.

    Attributes:
      leaves: {table: {name: [N, D]}}, the state of the present rows.
      last_step: {table: int32[N]}, up to which they had been brought.
      sums: as in the state, with the term of its step.
    """

    leaves: dict[str, dict[str, jax.Array]]
    last_step: dict[str, jax.Array]
    sums: jax.Array


class CatchUp(NamedTuple):
    """An optimizer whose absent rows catch up: four functions.

    A step calls `catch_up` before it differentiates, and `update` after. Before the tables are
    scored or copied, call `settle`, and at least every `CAPACITY` steps: a row that has been absent
    for longer becomes NaN when it is looked up.

    Attributes:
      init: params {"params": …, "tables": {name: [K, D]}} → `CatchUpState`.
      catch_up: (state, weights, rows) → (weights, `CaughtUp`). Brings the present rows to the
        state's step: their `weights` {table: [N, D]} and their state. If `rows` is dense, none is
        behind.
      update: (updates, state, params, *, rows, caught_up, …) → (updates, state), as that of
        `row_sparse`, with the caught-up weights as params. Add the updates to them
        (`apply_row_updates` with `weights`).
      settle: (tables, state, names) → (tables, state). Brings all rows of the tables `names`, by
        default all tables, to the state's step. Donate both: otherwise they are copied.
    """

    init: Callable[[Any], CatchUpState]
    catch_up: Callable[..., tuple[dict[str, jax.Array], CaughtUp]]
    update: Callable[..., tuple[Any, CatchUpState]]
    settle: Callable[..., tuple[dict[str, jax.Array], CatchUpState]]


def catch_up_present(
    optimizer: Any, state: Any, weights: dict[str, jax.Array], rows: Mapping[str, Rows]
) -> tuple[dict[str, jax.Array], dict[str, CaughtUp]]:
    """The weights that a step differentiates at, and keyword arguments for `optimizer.update`.

    Of a `CatchUp` these are the caught-up rows; of other optimizers the rows as they are.
    """
    if not isinstance(optimizer, CatchUp):
        return weights, {}
    weights, caught_up = optimizer.catch_up(state, weights, rows)
    return weights, {"caught_up": caught_up}


def catch_up(
    dense: Dense,
    before: Sequence[optax.GradientTransformation] = (),
    table_rates: Mapping[str, float] | None = None,
) -> CatchUp:
    """Makes a dense optimizer that updates only the rows that a batch looks up, with equal results.

    Args:
      dense: `dense_adam(…)`, `dense_sgd(…)` or `dense_rmsprop(…)`.
      before: transformations of the gradients that come before it, such as clipping and
        `mba_decay`. They must leave absent rows alone.
      table_rates: {table: factor of its learning rate}, by default 1.

    `init` raises ValueError if they do not, or can't be made row-sparse (`row_sparse`).
    """
    table_rates = table_rates or {}
    scaled = [scale_tables(table_rates)] if table_rates else []
    inner = optax.chain(*before, dense.optimizer, *scaled)
    terms, n = dense.coefficients.shape

    def check(inner: Any, params: Any) -> None:
        check_separable(inner, params)
        for transformation in before:
            _check_rests(optax.with_extra_args_support(transformation), params)

    init_inner = checked_init(inner, check)

    def init(params: Any) -> CatchUpState:
        return CatchUpState(
            init_inner(params),
            {name: jnp.zeros(len(table), jnp.int32) for name, table in params["tables"].items()},
            jnp.zeros((CAPACITY, n)),
            jnp.zeros((), jnp.int32),
        )

    def sums_of(state: CatchUpState) -> jax.Array:
        """The sums with the term of the state's step."""
        rate = jnp.where(state.step > 0, dense.rate(jnp.maximum(state.step, 1)), 0.0)
        earlier = (state.step - 1 - jnp.arange(terms)) % CAPACITY
        added = rate * jnp.asarray(dense.coefficients, jnp.float32)
        return state.sums.at[earlier].add(added).at[state.step % CAPACITY].set(0.0)

    def brought(
        name: str,
        weights: jax.Array,
        leaves: dict[str, jax.Array],
        last_step: jax.Array,
        step: jax.Array,
        sums: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Brings a table's rows [N, D], and the leaves of their state, from their last step on."""
        missed = step - last_step
        unknown = (missed >= CAPACITY) & (last_step > 0)
        of_rows = sums.at[jax.lax.rem(last_step, CAPACITY)].get(mode="clip")
        of_rows = jnp.where(unknown[:, None], jnp.nan, of_rows)
        moved = weights + table_rates.get(name, 1.0) * dense.movement(leaves, last_step, of_rows)
        decays = {
            name: jnp.exp(missed * math.log(max(factor, _ZERO)))[:, None]
            for name, factor in dense.decays.items()
        }
        return moved, {name: leaf * decays[name] for name, leaf in leaves.items()}

    def catch_up_rows(
        state: CatchUpState, weights: dict[str, jax.Array], rows: Mapping[str, Rows]
    ) -> tuple[dict[str, jax.Array], CaughtUp]:
        weights, of_tables = dict(weights), _row_state(state.inner)
        result = CaughtUp({}, {}, sums_of(state))
        for name, table_rows in rows.items():
            if table_rows.ids is not None:
                leaves = {
                    key: gather_rows(leaf, table_rows) for key, leaf in of_tables[name].items()
                }
                last_step = gather_rows(state.last_step[name], table_rows)
                weights[name], result.leaves[name] = brought(
                    name, weights[name], leaves, last_step, state.step, result.sums
                )
                result.last_step[name] = last_step
        return weights, result

    def update(
        updates: Any,
        state: CatchUpState,
        params: Any = None,
        *,
        rows: Mapping[str, Rows],
        caught_up: CaughtUp,
        **extra: Any,
    ) -> tuple[Any, CatchUpState]:
        old, step = _row_state(state.inner), state.step + 1
        updates, inner_state = inner.update(
            updates,
            _with_row_state(state.inner, old | caught_up.leaves),
            params,
            present={name: table_rows.present for name, table_rows in rows.items()},
            **extra,
        )
        new, last_step = _row_state(inner_state), {}
        for name, old_step in state.last_step.items():
            if name in caught_up.leaves:
                for key, leaf in new[name].items():
                    new[name][key] = scatter_rows(old[name][key], rows[name], leaf)
                # The maximum is `step`. It depends on what was read, so that no copy is needed.
                steps = jnp.maximum(caught_up.last_step[name], step)
                last_step[name] = scatter_rows(old_step, rows[name], steps)
            else:
                last_step[name] = jnp.where(rows[name].present | (old_step > 0), step, 0)
        inner_state = _with_row_state(inner_state, new)
        return updates, CatchUpState(inner_state, last_step, caught_up.sums, step)

    def settle(
        tables: dict[str, jax.Array], state: CatchUpState, names: Collection[str] | None = None
    ) -> tuple[dict[str, jax.Array], CatchUpState]:
        tables, of_tables, last_step = dict(tables), _row_state(state.inner), dict(state.last_step)
        sums = sums_of(state)

        def settled(name: str, weights: jax.Array, leaves: Any, last: jax.Array) -> Any:
            new = (
                *brought(name, weights, leaves, last, state.step, sums),
                jnp.full_like(last, state.step),
            )
            # A row that was never looked up stays at its initial values, padding at zero.
            return jax.tree.map(
                lambda a, b: jnp.where((last > 0).reshape(-1, *[1] * (a.ndim - 1)), a, b),
                new,
                (weights, leaves, last),
            )

        for name in tables if names is None else names:
            tables[name], of_tables[name], last_step[name] = _by_chunks(
                functools.partial(settled, name), (tables[name], of_tables[name], last_step[name])
            )
        inner_state = _with_row_state(state.inner, of_tables)
        return tables, state._replace(inner=inner_state, last_step=last_step)

    return CatchUp(init, catch_up_rows, update, settle)


def _by_chunks(function: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
    """Replaces arrays [K, …] by `function(*arrays)`, some rows at a time, in place.

    The last chunk may overlap the one before: `function` must not change rows that it has changed.
    """
    rows = len(arrays[0])
    size = min(rows, _ROWS_AT_ONCE)
    chunks = -(-rows // size)

    def begin(i: jax.Array | int) -> Any:
        return jnp.minimum(i * size, rows - size)

    def read(arrays: Any, i: jax.Array | int) -> Any:
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, begin(i), size), tuple(arrays)
        )

    def write(arrays: Any, i: jax.Array | int, chunk: Any) -> Any:
        return jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, begin(i), 0), arrays, chunk
        )

    def next_chunk(i: jax.Array, carry: Any) -> Any:
        # XLA copies an array that it may read after writing to it. So a chunk is written in the
        # iteration after the one that reads it.
        arrays, chunk = carry
        arrays = write(arrays, i - 1, chunk)
        return arrays, function(*read(arrays, i))

    first = function(*read(arrays, 0))
    arrays, last = jax.lax.fori_loop(1, chunks, next_chunk, (arrays, first))
    return write(arrays, chunks - 1, last)


def _row_state(inner_state: Any) -> dict[str, dict[str, Any]]:
    """The leaves of an optimizer's state that have a table's rows, {table: {name: leaf}}."""
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(inner_state):
        match path:
            case (*_, GetAttrKey(name=name), DictKey(key="tables"), DictKey(key=table)):
                found.setdefault(table, {})[name] = leaf
    return found


def _with_row_state(inner_state: Any, leaves: dict[str, dict[str, Any]]) -> Any:
    """An optimizer's state with other leaves of the tables' rows."""

    def replaced(path: Any, leaf: Any) -> Any:
        match path:
            case (*_, GetAttrKey(name=name), DictKey(key="tables"), DictKey(key=table)):
                return leaves[table][name]
        return leaf

    return jax.tree_util.tree_map_with_path(replaced, inner_state)


def _check_rests(transformation: optax.GradientTransformationExtraArgs, params: Any) -> None:
    """Raises ValueError if a transformation does not leave absent rows alone."""
    remembers = any(row_leaves(transformation, params))

    def moves() -> jax.Array:
        weights = jax.tree.map(lambda leaf: jnp.ones((1,) * len(leaf.shape), leaf.dtype), params)
        gradient = {**weights, "tables": jax.tree.map(jnp.zeros_like, weights["tables"])}
        updates, _ = transformation.update(
            gradient,
            transformation.init(weights),
            weights,
            present={name: jnp.zeros(1, bool) for name in params["tables"]},
            counts={name: jnp.ones(1) for name in params["tables"]},
            value=1.0,
        )
        moved = [jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates["tables"])]
        return jnp.any(jnp.stack([jnp.zeros((), bool), *moved]))

    if remembers or trial(moves):
        raise ValueError(
            "catch_up: a transformation before the optimizer does not leave absent rows alone: it "
            + ("has a state of their own" if remembers else "changes a gradient of zero")
            + "; use dense updates (config.optimizer.lazy=False), or for weight decay `mba_decay`"
        )
