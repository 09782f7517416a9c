"""Dense Adam, momentum SGD and RMSprop at the cost of the present rows.

A dense optimizer with a memory moves every row in every step. `row_sparse` leaves absent rows
alone. Here an absent row is left alone too, but makes up for the steps that it missed when it is
next looked up: its gradient was zero in all of them, so that they are known. Of a row that was
last looked up in step s, let k = 1, 2, … count the steps after it. In step s + k

* each leaf of its state has decayed to bᵏ of what it was, for example m = β₁ᵏ m_s, v = β₂ᵏ v_s;
* momentum moves it along its trace, by −lr(s + k) · bᵏ · trace;
* Adam moves it by

      −lr(s + k) · m / (1 − β₁ˢ⁺ᵏ) / (√(v / (1 − β₂ˢ⁺ᵏ)) + ε)
        = −m_s · c(s + k) (β₁/√β₂)ᵏ / (√v_s + ε g(s, k)),
      c(j) = lr(j) √(1 − β₂ʲ) / (1 − β₁ʲ),  g(s, k) = √((1 − β₂ˢ⁺ᵏ) / β₂ᵏ).

The sum of these movements over k is a series: its terms fall like bᵏ or (β₁/√β₂)ᵏ, and those below
`_NEGLIGIBLE` are left out. Its coefficients depend on s, and on no row. So each step adds its own
coefficient to the sums of the steps s before it, whatever the learning rate's schedule, and a row
looks the sums up at its s: the cost does not depend on how many steps a row missed.

Adam's denominator depends on k too. It is interpolated between a few ages k_i, by polynomials L_i
of log(k + 1):

    Σ_k c(s + k) (β₁/√β₂)ᵏ / (√v_s + ε g(s, k)) ≈ Σ_i S_i / (√v_s + ε g(s, k_i)),
    S_i = Σ_k c(s + k) (β₁/√β₂)ᵏ L_i(k).

Where ε is negligible this is exact, since Σ_i L_i(k) = 1. Elsewhere it is off by at most 10⁻⁵ of
the learning rate for each absence of a row, with β₁ = 0.9 and β₂ = 0.999.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax.tree_util import DictKey, GetAttrKey

from din_jax.nn.present_rows import Rows, gather_rows, scatter_rows
from din_jax.optim.row_sparse import check_separable, checked_init, row_leaves, trial

CAPACITY = 1 << 16  # number of last steps s for which sums are kept
_NEGLIGIBLE = 1e-9  # a term of the series over the first one
_NODES = 6  # number of ages k_i between which Adam's denominator is interpolated
_ROWS_AT_ONCE = 1 << 14  # rows of the chunks in which a table is settled


class CatchUpState(NamedTuple):
    """The state of a `CatchUp`.

    Attributes:
      inner: the state of the optimizer; an absent row's is that of its last step.
      last_step: {table: int32[K]}, the step up to which a row has been brought; 0: it was never
        looked up.
      sums: float32[CAPACITY, n], the sums of the series of the rows of last step s, at s mod
        CAPACITY.
      step: int32 [], the number of steps taken.
    """

    inner: Any
    last_step: dict[str, jax.Array]
    sums: jax.Array
    step: jax.Array


class CatchUp(NamedTuple):
    """An optimizer whose absent rows catch up: four functions.

    A step calls `catch_up` before it differentiates, and `update` after. Before the tables are
    scored or copied, call `settle`, and at least every `CAPACITY` steps: a row that has been absent
    for longer becomes NaN when it is looked up.

    Attributes:
      init: params {"params": …, "tables": {name: [K, D]}} → `CatchUpState`.
      catch_up: (state, weights, rows) → (weights, caught_up). Brings the present rows to the state's
        step: `weights` {table: their values, [N, D]}, and `caught_up` {table: {name: leaf}}, their
        optimizer state. Dense `rows` are never behind.
      update: (updates, state, params, *, rows, caught_up, …) → (updates, state), as that of
        `row_sparse`, with the caught-up weights as params. Add the updates to them
        (`apply_row_updates` with `weights`).
      settle: (tables, state, names) → (tables, state). Brings all rows of the tables `names`, by
        default all tables, to the state's step. Donate both: otherwise they are copied.
    """

    init: Callable[[Any], CatchUpState]
    catch_up: Callable[..., tuple[dict[str, jax.Array], dict[str, dict[str, jax.Array]]]]
    update: Callable[..., tuple[Any, CatchUpState]]
    settle: Callable[..., tuple[dict[str, jax.Array], CatchUpState]]


class _Absence(NamedTuple):
    """What an optimizer does to a row whose gradient is zero.

    Attributes:
      optimizer: the dense optimizer.
      decays: {name of a leaf of the rows' state: the factor by which it decays in a step}.
      coefficients: float64[window, n], those of the series at k = 1, 2, …
      rate: step j → the factor that step j contributes to the coefficients.
      movement: (leaves {name: [N, D]}, last step [N, 1], sums [N, n]) → [N, D].
    """

    optimizer: optax.GradientTransformation
    decays: dict[str, float]
    coefficients: npt.NDArray[np.float64]
    rate: Callable[[jax.Array], jax.Array]
    movement: Callable[[dict[str, jax.Array], jax.Array, jax.Array], jax.Array]


def catch_up_adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    before: optax.GradientTransformation | None = None,
) -> CatchUp:
    """Dense Adam, `optax.adam`, at the cost of the present rows.

    Args:
      learning_rate, b1, b2, eps: see `optax.adam`; β₁ < √β₂ and ε > 0.
      before: what transforms the gradient before Adam, such as clipping and `mba_decay`. It must
        leave absent rows alone.
    """
    _check_decays(b1=b1, b2=b2)
    if not eps > 0:
        raise ValueError(f"catch_up_adam: eps={eps!r}: expected more than 0")
    ratio = b1 / math.sqrt(b2) if b2 else math.inf
    ages = _ages(ratio, f"catch_up_adam: b1={b1!r} and b2={b2!r}: b1 / √b2")
    # Evenly spaced in log(k + 1), up to an age by which all but 1 % of the series have passed.
    last = max(3.0, 1 - 4.75 / math.log(ratio)) if ratio else 3.0
    nodes = np.geomspace(2, last, _NODES) - 1
    coefficients = -(ratio**ages)[:, None] * _lagrange(np.log1p(ages), np.log1p(nodes))
    q = np.float32(b2**nodes)[None]

    def rate(step: jax.Array) -> jax.Array:
        return _rate(learning_rate, step) * jnp.sqrt(1 - b2**step) / (1 - b1**step)

    def movement(
        leaves: dict[str, jax.Array], last_step: jax.Array, sums: jax.Array
    ) -> jax.Array:
        root = jnp.sqrt(leaves["nu"])
        corrections = -jnp.expm1(last_step * jnp.float32(math.log(b2)))  # 1 − β₂ˢ
        added = eps * jnp.sqrt((1 - q) / q + corrections)  # ε g(s, k_i)
        series = sum(sums[:, i : i + 1] / (root + added[:, i : i + 1]) for i in range(_NODES))
        return leaves["mu"] * series

    adam = optax.adam(learning_rate, b1, b2, eps)
    return _catch_up(_Absence(adam, {"mu": b1, "nu": b2}, coefficients, rate, movement), before)


def catch_up_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float,
    nesterov: bool = False,
    *,
    before: optax.GradientTransformation | None = None,
) -> CatchUp:
    """Dense SGD with momentum, `optax.sgd`, at the cost of the present rows.

    Args:
      learning_rate, momentum, nesterov: see `optax.sgd`. Without momentum SGD has no memory:
        `row_sparse(optax.sgd(…))` equals dense SGD.
      before: see `catch_up_adam`.
    """
    _check_decays(momentum=momentum)
    ages = _ages(momentum, f"catch_up_sgd: momentum={momentum!r}")
    absence = _Absence(
        optax.sgd(learning_rate, momentum, nesterov),
        {"trace": momentum},
        -(momentum ** (ages + nesterov))[:, None],
        lambda step: _rate(learning_rate, step),
        _along_the_trace,
    )
    return _catch_up(absence, before)


def catch_up_rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: float = 0.9,
    eps: float = 1e-8,
    momentum: float | None = None,
    nesterov: bool = False,
    *,
    before: optax.GradientTransformation | None = None,
    **options: Any,
) -> CatchUp:
    """Dense RMSprop, `optax.rmsprop`, at the cost of the present rows.

    Without momentum an absent row does not move; only the means of its gradients decay.

    Args:
      learning_rate, decay, eps, momentum, nesterov: see `optax.rmsprop`.
      before: see `catch_up_adam`.
      **options: other options of `optax.rmsprop`.
    """
    decays = {"nu": decay} | ({"mu": decay} if options.get("centered") else {})
    if momentum is not None:
        decays["trace"] = momentum
    _check_decays(**decays)
    factor = momentum or 0.0  # the trace has been multiplied by the learning rate
    ages = _ages(factor, f"catch_up_rmsprop: momentum={momentum!r}")
    absence = _Absence(
        optax.rmsprop(
            learning_rate, decay, eps, momentum=momentum, nesterov=nesterov, **options
        ),
        decays,
        (factor ** (ages + nesterov))[:, None],
        lambda step: jnp.ones(()),
        _along_the_trace,
    )
    return _catch_up(absence, before)


def caught_up(
    optimizer: Any, state: Any, weights: dict[str, jax.Array], rows: Mapping[str, Rows]
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The weights that a step differentiates at, and keyword arguments for `optimizer.update`.

    The rows of a `CatchUp` catch up; those of other optimizers are what they are.
    """
    if not isinstance(optimizer, CatchUp):
        return weights, {}
    weights, rows_of_state = optimizer.catch_up(state, weights, rows)
    return weights, {"caught_up": rows_of_state}


def _catch_up(absence: _Absence, before: optax.GradientTransformation | None) -> CatchUp:
    """Makes the four functions."""
    before = optax.with_extra_args_support(before or optax.identity())
    inner = optax.with_extra_args_support(optax.chain(before, absence.optimizer))
    window, n = absence.coefficients.shape

    def check(inner: Any, params: Any) -> None:
        check_separable(inner, params)
        _check_rests(before, params)

    init_inner = checked_init(inner, check)

    def init(params: Any) -> CatchUpState:
        return CatchUpState(
            init_inner(params),
            {name: jnp.zeros(len(table), jnp.int32) for name, table in params["tables"].items()},
            jnp.zeros((CAPACITY, n)),
            jnp.zeros((), jnp.int32),
        )

    def brought(
        weights: jax.Array,
        leaves: dict[str, jax.Array],
        last_step: jax.Array,
        state: CatchUpState,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Brings rows [N, D] and the leaves of their state to the state's step."""
        missed = state.step - last_step
        sums = state.sums[last_step % CAPACITY]
        unknown = (missed >= CAPACITY) & (last_step > 0)
        sums = jnp.where(unknown[:, None], jnp.nan, sums)
        moved = weights + absence.movement(leaves, last_step[:, None], sums)
        decays = {name: (factor**missed)[:, None] for name, factor in absence.decays.items()}
        return moved, {name: leaf * decays[name] for name, leaf in leaves.items()}

    def catch_up(
        state: CatchUpState, weights: dict[str, jax.Array], rows: Mapping[str, Rows]
    ) -> tuple[dict[str, jax.Array], dict[str, dict[str, jax.Array]]]:
        weights, leaves, caught_up = dict(weights), _row_state(state.inner), {}
        for name, table_rows in rows.items():
            if table_rows.ids is not None:
                weights[name], caught_up[name] = brought(
                    weights[name],
                    {key: gather_rows(leaf, table_rows) for key, leaf in leaves[name].items()},
                    gather_rows(state.last_step[name], table_rows),
                    state,
                )
        return weights, caught_up

    def update(
        updates: Any,
        state: CatchUpState,
        params: Any = None,
        *,
        rows: Mapping[str, Rows],
        caught_up: dict[str, dict[str, jax.Array]],
        **extra: Any,
    ) -> tuple[Any, CatchUpState]:
        old, step = _row_state(state.inner), state.step + 1
        updates, inner_state = inner.update(
            updates,
            _with_row_state(state.inner, old | caught_up),
            params,
            present={name: table_rows.present for name, table_rows in rows.items()},
            **extra,
        )
        new, last_step = _row_state(inner_state), {}
        for name, last in state.last_step.items():
            present = rows[name].present
            if name in caught_up:
                for key, leaf in new[name].items():
                    new[name][key] = scatter_rows(old[name][key], rows[name], leaf)
                steps = jnp.full(len(present), step)
                last_step[name] = scatter_rows(last, rows[name], steps)
            else:
                last_step[name] = jnp.where(present | (last > 0), step, 0)
        before_step = (step - 1 - jnp.arange(window)) % CAPACITY
        terms = absence.rate(step) * jnp.asarray(absence.coefficients, jnp.float32)
        sums = state.sums.at[before_step].add(terms).at[step % CAPACITY].set(0.0)
        return updates, CatchUpState(_with_row_state(inner_state, new), last_step, sums, step)

    def settle(
        tables: dict[str, jax.Array], state: CatchUpState, names: Any = None
    ) -> tuple[dict[str, jax.Array], CatchUpState]:
        tables, leaves, last_step = dict(tables), _row_state(state.inner), dict(state.last_step)
        for name in tables if names is None else names:
            size = min(len(tables[name]), _ROWS_AT_ONCE)

            def settle_chunk(i: jax.Array, whole: Any, size: int = size) -> Any:
                # Clamped: the last chunk overlaps the one before, whose rows are not moved again.
                begin = jnp.minimum(i * size, len(whole[2]) - size)
                chunk = jax.tree.map(
                    lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, begin, size), whole
                )
                seen = chunk[2] > 0
                new = (*brought(*chunk, state), jnp.full(size, state.step))
                new = jax.tree.map(
                    lambda a, b: jnp.where(seen.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, chunk
                )
                return jax.tree.map(
                    lambda leaf, part: jax.lax.dynamic_update_slice_in_dim(leaf, part, begin, 0),
                    whole,
                    new,
                )

            tables[name], leaves[name], last_step[name] = jax.lax.fori_loop(
                0,
                -(-len(tables[name]) // size),
                settle_chunk,
                (tables[name], leaves[name], last_step[name]),
            )
        inner_state = _with_row_state(state.inner, leaves)
        return tables, state._replace(inner=inner_state, last_step=last_step)

    return CatchUp(init, catch_up, update, settle)


def _along_the_trace(
    leaves: dict[str, jax.Array], last_step: jax.Array, sums: jax.Array
) -> jax.Array:
    return leaves["trace"] * sums if "trace" in leaves else jnp.zeros(())


def _rate(learning_rate: optax.ScalarOrSchedule, step: jax.Array) -> jax.Array:
    """The learning rate of step 1, 2, …"""
    return learning_rate(step - 1) if callable(learning_rate) else jnp.asarray(learning_rate)


def _ages(ratio: float, what: str) -> npt.NDArray[np.float64]:
    """The ages k = 1, 2, … at which the terms of a series matter, which fall like ratioᵏ.

    Raises:
      ValueError: there are too many.
    """
    window = 1
    if 0 < ratio < 1:
        window = math.ceil(math.log(_NEGLIGIBLE) / math.log(ratio))
    if not ratio < 1 or 2 * window > CAPACITY:
        raise ValueError(f"{what} is too near to 1 or above: the missed steps never end to matter")
    return np.arange(1.0, window + 1)


def _lagrange(
    x: npt.NDArray[np.float64], nodes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The polynomials [len(x), n] that are 1 at one of n nodes and 0 at the others."""
    others = ~np.eye(len(nodes), dtype=bool)
    factors = [
        (x[:, None] - nodes[other]) / (node - nodes[other])
        for node, other in zip(nodes, others, strict=True)
    ]
    return np.stack([np.prod(factor, axis=1) for factor in factors], axis=1)


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


def _check_decays(**decays: float) -> None:
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise ValueError(f"catch_up: {name}={value!r}: expected 0 up to below 1")


def _check_rests(before: optax.GradientTransformationExtraArgs, params: Any) -> None:
    """Raises ValueError if `before` does not leave absent rows alone."""
    remembers = any(row_leaves(before, params))

    def moves() -> jax.Array:
        weights = jax.tree.map(lambda leaf: jnp.ones((1,) * len(leaf.shape), leaf.dtype), params)
        gradient = {**weights, "tables": jax.tree.map(jnp.zeros_like, weights["tables"])}
        updates, _ = before.update(
            gradient,
            before.init(weights),
            weights,
            present={name: jnp.zeros(1, bool) for name in params["tables"]},
            counts={name: jnp.ones(1) for name in params["tables"]},
            value=1.0,
        )
        leaves = jax.tree.leaves(updates["tables"])
        return jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in leaves]))

    if remembers or trial(moves):
        raise ValueError(
            "catch_up: what stands before the optimizer does not leave absent rows alone: it "
            + ("has a state of their own" if remembers else "changes a gradient of zero")
            + "; use dense updates (config.optimizer.lazy=False), or for weight decay `mba_decay`"
        )
