"""Bytes that devices exchange in a compiled train step, as the table of goods grows.

    JAX_NUM_CPU_DEVICES=8 python benchmarks/exchange.py

Counts the collectives in the compiled step of `table_growth.py`'s DIN, with the table of goods
replicated and sharded. In a ring of M devices each device sends (M − 1)/M of an all-gather's
output, (M − 1)/M of a reduce-scatter's input, or twice that of an all-reduce. The last line is
JSON: `PLACEMENT_ROWS` is the number of bytes that a device sends per step, `formula_PLACEMENT` that
of docs/scaling.md's formula, `ratio_PLACEMENT` that of the largest table over the smallest.
"""

import argparse
import json
import math
import os
import re

os.environ.setdefault("NPROC", "32")  # JAX on CPU can abort with several devices and few threads

import jax
import numpy as np
from table_growth import CATEGORIES, make_batches, schema_of

from din_jax.config import default_config
from din_jax.distributed.devices import choose, is_sharded
from din_jax.models.registry import build_model, model_tables
from din_jax.optim.build import build_optimizer
from din_jax.optim.regularizer import Regularizer
from din_jax.step.state import state_shapes
from din_jax.step.train import train_step

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "f16": 2, "bf16": 2, "pred": 1, "s8": 1, "u8": 1}
_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all)(-start)?\(")


def sent_bytes(compiled_text: str, devices: int) -> dict[str, float]:
    """Bytes that each device sends in the collectives of a compiled program, by kind."""
    ring = (devices - 1) / devices
    # Relative to the output: that of a reduce-scatter is 1/M of its input.
    factors = {
        "all-gather": ring,
        "all-reduce": 2 * ring,
        "reduce-scatter": devices * ring,
        "all-to-all": ring,
    }
    sent = dict.fromkeys(factors, 0.0)
    for shapes, kind, _ in _COLLECTIVE.findall(compiled_text):
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size = math.prod(int(n) for n in sizes.split(",") if n)
            sent[kind] += factors[kind] * size * _BYTES[dtype]
    return sent


def formula(
    placement: str,
    devices: int,
    batch_size: int,
    behaviors: int,
    params: int,
    dim: int = 16,
    whole: int = 0,
) -> float:
    """The bytes of docs/scaling.md's formula, for goods, categories (dense) and the network.

    Args:
      placement: of the goods, "replicated" or "sharded".
      devices: M.
      batch_size, behaviors: B and T, over all devices, including padding of the packed axis.
      params: P.
      dim: D.
      whole: K, if the goods are updated densely; 0 if sparsely.
    """
    ids = 4 * (batch_size + behaviors)
    if placement == "sharded":
        goods = ids * (1 + 2 * dim)  # sparse or dense
    else:
        goods = ids + 8 * whole * dim if whole else ids * (1 + dim)
    categories = ids + 8 * CATEGORIES * dim
    return (devices - 1) / devices * (goods + categories + 8 * params)


def compiled_step(
    rows: int, placement: str, devices: int, batch_size: int, *, lazy: bool = True
) -> tuple[str, int, int]:
    """The text of the compiled train step, T of its batch, and its number of parameters."""
    config = default_config()
    config.model.embedding_dim = 16
    config.model.hidden = config.model.attention.hidden = (80, 40)
    config.optimizer.decay_samples = 1_000_000
    config.optimizer.lazy = lazy
    config.regularizer.name = "mba"
    schema = schema_of(rows)
    # The table of categories is small, and is updated densely.
    where = choose(devices, f"item={placement}", model_tables(schema, config.model))
    model = build_model(schema, config.model, where.axis)
    optimizer = build_optimizer(
        config.optimizer,
        config.regularizer,
        batch_size,
        model.tables,
        where.axis,
        where.sharded,
    )
    local_batches = make_batches(rows, batch_size // devices)[:devices]
    batch = jax.tree.map(lambda *x: np.stack(x), *(local_batches * devices)[:devices])
    counts = {name: np.ones(spec.rows, np.float32) for name, spec in model.tables.items()}
    step = train_step(model, optimizer, Regularizer(counts=counts), where)

    def in_memory(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """The shape of an array in memory: with a device axis if it is sharded."""
        if not is_sharded(leaf):
            return leaf
        shape = (where.count, where.block(leaf.shape[0]), *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    # The step is only compiled: shapes are enough.
    shapes = state_shapes(model, optimizer, batch, lazy=lazy, placement=where)
    state = jax.tree.map(in_memory, shapes)
    text = step.lower(state, batch).compile().as_text()
    return (
        text,
        batch.sequences["history"].segment_ids.size,
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    )


def main() -> None:
    """Compiles the steps, counts the bytes, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="100000,10000000", help="sizes K of the table of goods")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1024, help="over all devices")
    arguments = parser.parse_args()
    devices = arguments.devices
    sizes = [int(rows) for rows in arguments.rows.split(",")]
    figures: dict[str, float] = {"devices": devices}
    for placement in ("replicated", "sharded"):
        totals = []
        for rows in sizes:
            text, behaviors, params = compiled_step(rows, placement, devices, arguments.batch)
            sent = sent_bytes(text, devices)
            totals.append(sum(sent.values()))
            figures[f"{placement}_{rows}"] = totals[-1]
            kinds = "  ".join(f"{kind} {size:,.0f}" for kind, size in sent.items())
            print(f"{placement:<12}{rows:>12,} rows: {totals[-1]:>12,.0f} bytes  ({kinds})")
        figures[f"formula_{placement}"] = formula(
            placement, devices, arguments.batch, behaviors, params
        )
        figures[f"ratio_{placement}"] = totals[-1] / totals[0]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
