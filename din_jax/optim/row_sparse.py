"""Any row-separable Optax transformation on the rows of a batch alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from din_jax.distributed.devices import AXIS
from din_jax.nn.present_rows import Rows, gather_rows, scatter_rows

_TRIED_STEPS = (0, 1, 7, 50, 400, 3_000, 20_000, 150_000)


def row_sparse(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`inner` on the rows of a batch alone: its cost does not grow with the tables.

    `inner` is any transformation that treats the rows of a table alike and apart: SGD, momentum,
    Adagrad, Adam, AdamW, RMSprop, Lion, schedules, clipping by value or by global norm (of dense
    and row gradients together), `inject_hyperparams`, `partition`, `masked`, chains of all these.
    The leaves of its state that have a table's rows are gathered, `inner` runs on the gathered
    rows, and they are scattered back; state without rows, such as a count of steps, stays global.

    The result is that of `inner` on whole tables if, in each step, the rows that are absent are
    zero in gradient, weights and state, and are afterwards put back as they were. So a row is not
    touched in a step whose batch does not look it up. For SGD that is nothing new: the gradient of
    an absent row is zero. For what remembers, it is:

    * Adam is "lazy", as TensorFlow Addons' `LazyAdam` and PyTorch's `SparseAdam` are: dense Adam
      moves an absent row along its first moment and lets both moments decay in every step,
      m ← β₁m, v ← β₂v; here they stay as they were when the row was last present. The bias
      correction, 1 − βᵗ, still goes by the steps of the whole run. With every row present in every
      step, it is `optax.adam`.
    * Momentum, RMSprop and Lion are lazy in the same way.
    * Weight decay (AdamW) reaches a row only when it is present.
    * Adagrad is the same as ever: its state changes only with the gradient.

    What does not treat rows apart raises ValueError in `init`: Adafactor and others with factored
    state; block-RMS clipping and Adafactor's scaling, whose mean is over rows; noise, which depends
    on the shape; gradient accumulation (`MultiSteps`, `apply_every`), which would give the sum of
    several batches to the rows of the last; L-BFGS. `init` finds this by trying `inner` on small
    tables; one that needs keyword arguments of its own can't be tried, and is taken on trust. What
    is scaled by the norm of a whole parameter (LARS, LAMB) sees the norm of the present rows.

    Args:
      inner: transforms trees {"params": …, "tables": {name: [rows, D]}}.

    Returns:
      A transformation whose `init` takes whole tables. Its `update` takes gradients and weights
      with those rows under "tables" that the required keyword argument `rows` {name: `Rows`}
      describes, sparse [N, D] or dense [K, D], and hands `present` {name: bool[rows]} and all
      other keyword arguments on to `inner`. `gather_rows` goes before it, `apply_row_updates`
      after it (`din_jax.nn.present_rows`).
    """
    inner = optax.with_extra_args_support(inner)
    passed: set[Any] = set()  # trees of parameters on which `inner` was tried

    def init(params: Any) -> Any:
        # The trial does not depend on how many rows a table has.
        tried = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
        tables = {name: (of[0][1:], of[1]) for name, of in tried["tables"].items()}
        leaves, structure = jax.tree.flatten({**tried, "tables": tables})
        if (key := (structure, *leaves)) not in passed:
            _check_separable(inner, params)
            passed.add(key)
        return inner.init(params)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        rows: Mapping[str, Rows],
        **extra: Any,
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("row_sparse needs the params: call update(updates, state, params, …)")
        if rows.keys() != params["tables"].keys():
            raise ValueError(
                f"row_sparse: `rows` describes {sorted(rows)}, the tables are "
                f"{sorted(params['tables'])}"
            )

        def present(tree: Any) -> Any:
            """The tree with zeros in the rows that are absent."""
            tables = {
                name: jnp.where(rows[name].present[:, None], table, jnp.zeros((), table.dtype))
                for name, table in tree["tables"].items()
            }
            return {**tree, "tables": tables}

        old, structure = jax.tree.flatten(state)
        owners = row_leaves(inner, params)
        gathered = [
            leaf if name is None else gather_rows(leaf, rows[name])
            for leaf, name in zip(old, owners, strict=True)
        ]
        updates, state = inner.update(
            present(updates),
            jax.tree.unflatten(structure, gathered),
            present(params),
            present={name: of_table.present for name, of_table in rows.items()},
            **extra,
        )
        new = [
            leaf if name is None else scatter_rows(before, rows[name], leaf)
            for before, leaf, name in zip(old, jax.tree.leaves(state), owners, strict=True)
        ]
        return present(updates), jax.tree.unflatten(structure, new)

    return optax.GradientTransformationExtraArgs(init, update)


def row_leaves(inner: optax.GradientTransformation, params: Any) -> list[str | None]:
    """For each leaf of the state of `inner`, the table whose rows it has, if any.

    It is the one with which its leading axis grows.

    Args:
      inner: the transformation.
      params: {"params": …, "tables": {name: [rows, D]}}, or the shapes and types of these.

    Raises:
      ValueError: another axis grows, or an axis grows with two tables.
    """

    def shapes(grown: str | None) -> list[tuple[int, ...]]:
        tables = {
            name: jax.ShapeDtypeStruct((len(t) + (name == grown), *t.shape[1:]), t.dtype)
            for name, t in params["tables"].items()
        }
        return [leaf.shape for leaf in jax.tree.leaves(_shape_of(inner, params, tables))]

    plain = shapes(None)
    owners: list[str | None] = [None] * len(plain)
    for name, table in params["tables"].items():
        for i, (before, after) in enumerate(zip(plain, shapes(name), strict=True)):
            if before == after:
                continue
            if owners[i] or before[:1] != (len(table),) or after != (len(table) + 1, *before[1:]):
                raise _not_separable(
                    f"a leaf of its state has the shape {before} where table {name!r} has "
                    f"{len(table)} rows, and {after} where it has one more"
                )
            owners[i] = name
    return owners


def _shape_of(inner: optax.GradientTransformation, params: Any, tables: dict[str, Any]) -> Any:
    return jax.eval_shape(inner.init, {**params, "tables": tables})


def _check_separable(inner: optax.GradientTransformationExtraArgs, params: Any) -> None:
    """Raises ValueError if `inner` can't be made row-sparse: by its state, and by trying it.

    It is tried on small stand-ins for the parameters: two rows of zeros more must change nothing
    for the others. Where a schedule warms up or has ended the updates are zero and show nothing, so
    it is tried at several steps.
    """
    accumulators = (optax.MultiStepsState, optax.ApplyEvery)
    state = _shape_of(inner, params, params["tables"])
    for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, accumulators)):
        if isinstance(leaf, accumulators):
            raise _not_separable("it accumulates gradients over several batches")
    row_leaves(inner, params)

    def result(extra: int, step: jax.Array) -> Any:
        rng = np.random.default_rng(0)
        drawn = {
            name: 1 + rng.random((3, *leaf.shape[1:])) for name, leaf in params["tables"].items()
        }

        def stand_in(leaf: Any) -> jax.Array:
            return jnp.ones((1,) * len(leaf.shape), leaf.dtype)

        def table(values: np.ndarray, leaf: Any, scale: float) -> jax.Array:
            padded = np.concatenate([np.zeros((extra, *values.shape[1:])), scale * values])
            return jnp.asarray(padded, leaf.dtype)

        def tree(scale: float) -> Any:
            rest = {name: part for name, part in params.items() if name != "tables"}
            tables = {
                name: table(drawn[name], leaf, scale) for name, leaf in params["tables"].items()
            }
            return {**jax.tree.map(stand_in, rest), "tables": tables}

        weights = tree(2.0)
        owners = row_leaves(inner, weights)
        present = {name: jnp.ones(3 + extra, bool) for name in params["tables"]}
        counts = {name: jnp.ones(3 + extra) for name in params["tables"]}
        state = jax.tree.map(
            lambda leaf: (
                step.astype(leaf.dtype)
                if leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)
                else leaf
            ),
            inner.init(weights),
        )
        found = []
        for scale in (100.0, 0.01):  # a large gradient is clipped, a small one is not
            updates, state = inner.update(
                tree(scale), state, weights, present=present, counts=counts, value=1.0
            )
            tables = {name: leaf[extra:] for name, leaf in updates["tables"].items()}
            found.append({**updates, "tables": tables})
        kept = [
            leaf if name is None else leaf[extra:]
            for leaf, name in zip(jax.tree.leaves(state), owners, strict=True)
        ]
        return found, [leaf for leaf in kept if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def differs(step: jax.Array) -> jax.Array:
        close = jax.tree.map(
            lambda a, b: jnp.allclose(a, b, rtol=1e-4), result(0, step), result(2, step)
        )
        return ~jnp.all(jnp.stack(jax.tree.leaves(close)))

    def differs_anywhere(_: jax.Array) -> jax.Array:
        return jnp.any(jax.vmap(differs)(jnp.array(_TRIED_STEPS)))

    try:  # with the devices' axis, which clipping by global norm needs
        tried = jax.jit(jax.vmap(differs_anywhere, axis_name=AXIS)).lower(np.zeros(1))
    except TypeError:  # a keyword argument is missing
        return
    compiled = tried.compile()
    with jax.ensure_compile_time_eval():  # `init` may be being traced
        (found,) = compiled(np.zeros(1))
    if found:
        raise _not_separable("rows of zeros beside the others change what becomes of those")


def _not_separable(reason: str) -> ValueError:
    return ValueError(
        f"row_sparse: this transformation does not treat the rows of a table apart: {reason}. Use "
        "another for the tables (optax.partition), or train whole tables "
        "(config.optimizer.lazy=False)"
    )


def whole_tables(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` on whole tables, as Optax has it: every row moves in every step.

    Takes `rows` as `row_sparse` does, each without `ids`, and hands `present` on.
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Any, state: Any, params: Any = None, *, rows: Mapping[str, Rows], **extra: Any
    ) -> tuple[Any, Any]:
        present = {name: of_table.present for name, of_table in rows.items()}
        return inner.update(updates, state, params, present=present, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)
