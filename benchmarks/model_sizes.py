"""Numbers of parameters and floating-point operations of every model, on a data set.

    python benchmarks/model_sizes.py --config configs/table3.py:paper:data/amazon

FLOPs are XLA's count for the compiled forward pass of one batch, per sample: additions and
multiplications, including padding, without exponentials and lookups.
"""

from __future__ import annotations

import copy
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
_BATCH = flags.DEFINE_integer("batch", 1024, "Samples in the batch.")
MODELS = ("lr", "base", "wide_deep", "pnn", "pnn outer", "deepfm", "din")


def sizes(config: ConfigDict, model: str) -> dict[str, Any]:
    """The numbers of scalars in the network, the embeddings and the other tables; FLOPs."""
    config = copy.deepcopy(config)
    config.model.name, _, product = model.partition(" ")
    config.model.pnn.product = product or "inner"
    config.train.batch_size = _BATCH.value
    run = open_run(config)
    state, batch = run.init(), run.source[0]
    score = jax.jit(score_step(run.model, placement=run.placement))
    cost = score.lower(state, batch).compile().cost_analysis()
    embeddings = {table.name for table in run.store.schema.tables}
    scalars = {name: table.size for name, table in state.tables.items()}
    return {
        "model": model,
        "network": sum(x.size for x in jax.tree.leaves(state.params)),
        "embeddings": sum(n for name, n in scalars.items() if name in embeddings),
        "other tables": sum(n for name, n in scalars.items() if name not in embeddings),
        "flops_a_sample": cost["flops"] / (batch.weight > 0).sum().item(),
    }


def main() -> None:
    """Prints one line per model."""
    cli.parse_flags(sys.argv, required=("config",))
    lines = [sizes(_CONFIG.value, model) for model in MODELS]
    print("| model | network | embeddings | weights and crosses | FLOPs per sample, forward |")
    print("| --- | --- | --- | --- | --- |")
    for line in lines:
        print(
            f"| {line['model']} | {line['network']:,} | {line['embeddings']:,} "
            f"| {line['other tables']:,} | {line['flops_a_sample']:,.0f} |"
        )
    print(json.dumps(lines))


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
