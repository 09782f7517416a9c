"""Parameters and floating-point operations of every model, on a data set.

    python benchmarks/model_sizes.py --config configs/table3.py:paper:data/amazon

Operations are those that XLA counts in the compiled forward pass of one batch, divided by its
samples: additions and multiplications, padding included, without exponentials and look-ups.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from din_jax import cli
from din_jax.step.score import score_step
from din_jax.training.run import open_run

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/.", lock_config=True
)
_BATCH = flags.DEFINE_integer("batch", 1024, "Samples of the batch that is looked at.")
MODELS = ("lr", "base", "wide_deep", "pnn", "pnn outer", "deepfm", "din")


def sizes(config: ConfigDict, model: str) -> dict[str, Any]:
    """Scalars of the network, of the embeddings and of the tables beside them; operations."""
    config = config.copy_and_resolve_references()
    config.model.name, _, product = model.partition(" ")
    config.model.pnn.product = product or "inner"
    config.train.batch_size = _BATCH.value
    run = open_run(config)
    state, batch = run.init(), run.source[0]
    score = jax.jit(score_step(run.model, placement=run.placement))
    cost = score.lower(state, batch).compile().cost_analysis()
    own = {table.name for table in run.store.schema.tables}
    scalars = {name: table.size for name, table in state.tables.items()}
    return {
        "model": model,
        "network": sum(x.size for x in jax.tree.leaves(state.params)),
        "embeddings": sum(n for name, n in scalars.items() if name in own),
        "other tables": sum(n for name, n in scalars.items() if name not in own),
        "flops_a_sample": cost["flops"] / batch.weight.sum().item(),
    }


def main() -> None:
    """Prints a line a model."""
    cli.parse_flags(sys.argv, required=("config",))
    found = [sizes(_CONFIG.value, model) for model in MODELS]
    print("| model | network | embeddings | weights and crosses | FLOPs a sample, forward |")
    print("| --- | --- | --- | --- | --- |")
    for line in found:
        print(
            f"| {line['model']} | {line['network']:,} | {line['embeddings']:,} "
            f"| {line['other tables']:,} | {line['flops_a_sample']:,.0f} |"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
