"""Applies row-separable Optax transformations only to the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from din_jax.distributed.devices import AXIS
from din_jax.nn.present_rows import Rows, gather_rows, scatter_rows

_TRIAL_STEPS = (0, 1, 7, 50, 400, 3_000, 20_000, 150_000)  # values of step counters in trials


def row_sparse(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Applies `inner` only to the rows that a batch looks up, at a cost independent of table size.

    `inner` is any transformation that treats the rows of a table independently and identically:
    SGD, momentum, Adagrad, Adam, AdamW, RMSprop, Lion, schedules, clipping by value or by global
    norm (of dense and row gradients together), `inject_hyperparams`, `partition`, `masked`, and
    chains of these. The leaves of its state that have a table's rows are gathered, `inner` is
    applied to the gathered rows, and the leaves are scattered back. State without rows, such as a
    step count, remains global.

    In each step the result equals that of `inner` on the full tables with absent rows set to zero
    in gradient, weights and state, and restored afterwards. So a row does not change in a step
    whose batch does not look it up. For SGD this makes no difference, since the gradient of an
    absent row is zero. For optimizers with memory it does:

    * Adam is "lazy", like TensorFlow Addons' `LazyAdam` and PyTorch's `SparseAdam`. Dense Adam
      updates an absent row with its first moment and decays both moments in every step, m ← β₁m,
      v ← β₂v. Here the moments do not change while the row is absent. The bias correction, 1 − βᵗ,
      still uses the number of all steps. If every row is present in every step, the result is that
      of `optax.adam`.
    * Momentum, RMSprop and Lion are lazy in the same way.
    * Weight decay (AdamW) is applied to a row only when it is present.
    * Adagrad is unchanged: its state changes only with the gradient.

    `init` raises ValueError for a transformation that does not treat rows independently: Adafactor
    and others with factored state; block-RMS clipping and Adafactor's scaling, whose mean is over
    rows; noise, which depends on the shape; gradient accumulation (`MultiSteps`, `apply_every`),
    which would apply the sum of several batches to the rows of the last; L-BFGS. `init` detects
    them by a trial on small tables. A transformation that requires keyword arguments of its own
    can't be tried, and is accepted unchecked. Transformations that scale by the norm of a parameter
    (LARS, LAMB) use the norm of the present rows.

    Args:
      inner: transforms trees {"params": …, "tables": {name: [rows, D]}}.

    Returns:
      A transformation whose `init` takes the full tables. Its `update` takes under "tables" the
      gradients and weights of the rows that the required keyword argument `rows` {name: `Rows`}
      describes, sparse [N, D] or dense [K, D]. It passes `present` {name: bool[rows]} and all other
      keyword arguments on to `inner`. Use `gather_rows` before it and `apply_row_updates` after it
      (`din_jax.nn.present_rows`).
    """
    inner = optax.with_extra_args_support(inner)
    init = checked_init(inner, check_separable)

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

        def zero_absent(tree: Any) -> Any:
            """Sets the absent rows of a tree's tables to zero."""
            tables = {
                name: jnp.where(rows[name].present[:, None], table, jnp.zeros((), table.dtype))
                for name, table in tree["tables"].items()
            }
            return {**tree, "tables": tables}

        old_leaves, structure = jax.tree.flatten(state)
        owners = row_leaves(inner, params)
        gathered = [
            leaf if name is None else gather_rows(leaf, rows[name])
            for leaf, name in zip(old_leaves, owners, strict=True)
        ]
        updates, state = inner.update(
            zero_absent(updates),
            jax.tree.unflatten(structure, gathered),
            zero_absent(params),
            present={name: table_rows.present for name, table_rows in rows.items()},
            **extra,
        )
        new_leaves = [
            new if name is None else scatter_rows(old, rows[name], new)
            for old, new, name in zip(old_leaves, jax.tree.leaves(state), owners, strict=True)
        ]
        return zero_absent(updates), jax.tree.unflatten(structure, new_leaves)

    return optax.GradientTransformationExtraArgs(init, update)


def checked_init(
    inner: optax.GradientTransformation, check: Callable[[Any, Any], None]
) -> Callable[[Any], Any]:
    """Makes an `inner.init` that first calls `check(inner, params)`, once for all table sizes."""
    checked: set[Any] = set()  # shapes of parameters that passed

    def init(params: Any) -> Any:
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
        tables = {name: (shape[1:], dtype) for name, (shape, dtype) in shapes["tables"].items()}
        leaves, structure = jax.tree.flatten({**shapes, "tables": tables})
        if (key := (structure, *leaves)) not in checked:
            check(inner, params)
            checked.add(key)
        return inner.init(params)

    return init


def row_leaves(inner: optax.GradientTransformation, params: Any) -> list[str | None]:
    """For each leaf of the state of `inner`, the name of the table whose rows it has, or None.

    A leaf has the rows of the table with whose number of rows its leading axis grows.

    Args:
      inner: the transformation.
      params: {"params": …, "tables": {name: [rows, D]}}, or their shapes and dtypes.

    Raises:
      ValueError: another axis grows, or an axis grows with two tables.
    """

    def shapes(grown: str | None) -> list[tuple[int, ...]]:
        tables = {
            name: jax.ShapeDtypeStruct((len(t) + (name == grown), *t.shape[1:]), t.dtype)
            for name, t in params["tables"].items()
        }
        return [leaf.shape for leaf in jax.tree.leaves(_shape_of(inner, params, tables))]

    original = shapes(None)
    owners: list[str | None] = [None] * len(original)
    for name, table in params["tables"].items():
        for i, (before, after) in enumerate(zip(original, shapes(name), strict=True)):
            if before == after:
                continue
            if owners[i] or before[:1] != (len(table),) or after != (len(table) + 1, *before[1:]):
                raise _not_separable(
                    f"a leaf of its state has the shape {before} if table {name!r} has "
                    f"{len(table)} rows, and {after} if it has one more"
                )
            owners[i] = name
    return owners


def _shape_of(inner: optax.GradientTransformation, params: Any, tables: dict[str, Any]) -> Any:
    return jax.eval_shape(inner.init, {**params, "tables": tables})


def check_separable(inner: optax.GradientTransformationExtraArgs, params: Any) -> None:
    """Raises ValueError if `inner` can't be made row-sparse.

    Checks its state, and applies it to small random parameters: adding two rows of zeros must not
    change the results of the other rows. This is tried at several values of the step counters,
    because the updates are zero, and show nothing, where a schedule warms up or has ended.
    """
    accumulators = (optax.MultiStepsState, optax.ApplyEvery)
    state = _shape_of(inner, params, params["tables"])
    for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, accumulators)):
        if isinstance(leaf, accumulators):
            raise _not_separable("it accumulates gradients over several batches")
    row_leaves(inner, params)

    def result(zero_rows: int, step: jax.Array) -> Any:
        """Two updates and the state of three random rows, after `zero_rows` rows of zeros."""
        rng = np.random.default_rng(0)
        random = {
            name: 1 + rng.random((3, *leaf.shape[1:])) for name, leaf in params["tables"].items()
        }

        def ones(leaf: Any) -> jax.Array:
            return jnp.ones((1,) * len(leaf.shape), leaf.dtype)

        def table(values: npt.NDArray[Any], leaf: Any, scale: float) -> jax.Array:
            padded = np.concatenate([np.zeros((zero_rows, *values.shape[1:])), scale * values])
            return jnp.asarray(padded, leaf.dtype)

        def tree(scale: float) -> Any:
            dense = {name: subtree for name, subtree in params.items() if name != "tables"}
            tables = {
                name: table(random[name], leaf, scale) for name, leaf in params["tables"].items()
            }
            return {**jax.tree.map(ones, dense), "tables": tables}

        weights = tree(2.0)
        owners = row_leaves(inner, weights)
        present = {name: jnp.ones(3 + zero_rows, bool) for name in params["tables"]}
        counts = {name: jnp.ones(3 + zero_rows) for name in params["tables"]}
        state = jax.tree.map(
            lambda leaf: (
                step.astype(leaf.dtype)
                if leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)
                else leaf
            ),
            inner.init(weights),
        )
        all_updates = []
        for scale in (100.0, 0.01):  # a large gradient is clipped, a small one is not
            updates, state = inner.update(
                tree(scale), state, weights, present=present, counts=counts, value=1.0
            )
            tables = {name: leaf[zero_rows:] for name, leaf in updates["tables"].items()}
            all_updates.append({**updates, "tables": tables})
        leaves = [
            leaf if name is None else leaf[zero_rows:]
            for leaf, name in zip(jax.tree.leaves(state), owners, strict=True)
        ]
        return all_updates, [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def differs(step: jax.Array) -> jax.Array:
        close = jax.tree.map(
            lambda a, b: jnp.allclose(a, b, rtol=1e-4), result(0, step), result(2, step)
        )
        return ~jnp.all(jnp.stack(jax.tree.leaves(close)))

    def differs_anywhere() -> jax.Array:
        return jnp.any(jax.vmap(differs)(jnp.array(_TRIAL_STEPS)))

    if trial(differs_anywhere):
        raise _not_separable("adding rows of zeros changes the results of the other rows")


def trial(differs: Callable[[], jax.Array]) -> bool:
    """The value of `differs()`, compiled; False if it requires other keyword arguments."""
    try:  # with the devices' axis, which clipping by global norm needs
        mapped = jax.jit(jax.vmap(lambda _: differs(), axis_name=AXIS)).lower(np.zeros(1))
    except TypeError:  # a transformation requires another keyword argument
        return False
    compiled = mapped.compile()
    with jax.ensure_compile_time_eval():  # `init` may be being traced
        (result,) = compiled(np.zeros(1))
    return bool(result)


def _not_separable(reason: str) -> ValueError:
    return ValueError(
        f"row_sparse: this transformation does not treat the rows of a table apart: {reason}. Use "
        "another for the tables (optax.partition), or dense updates "
        "(config.optimizer.lazy=False)"
    )


def whole_tables(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Applies `inner` to the full tables, like plain Optax: every row is updated in every step.

    Its `update` requires `rows` as that of `row_sparse` does, all dense, and passes `present` on.
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Any, state: Any, params: Any = None, *, rows: Mapping[str, Rows], **extra: Any
    ) -> tuple[Any, Any]:
        present = {name: table_rows.present for name, table_rows in rows.items()}
        return inner.update(updates, state, params, present=present, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)
