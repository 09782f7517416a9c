"""All config keys, with their defaults and meanings. The files of `configs/` override some."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ml_collections import ConfigDict, config_dict

from din_jax.errors import DinError


def default_config() -> ConfigDict:
    """Makes a config with all keys; `configs/*.py` start from it.

    It is locked: setting an unknown key raises an error.
    """
    c = ConfigDict()
    c.seed = 0  # seed of the initial weights, the order of the samples and the dropout
    # Number of devices that train together, or "all". A batch is split evenly among them.
    c.devices = config_dict.FieldReference(1, field_type=object)
    # Placement of tables on several devices: "replicated" (a copy on every device), "sharded" (a
    # block of rows on each device), or per table: "item=sharded", "sharded,category=replicated".
    c.placement = "replicated"

    c.processes = ConfigDict()  # several processes, for instance on several hosts (docs/scaling.md)
    # HOST:PORT of process 0. "auto": JAX detects the cluster (Slurm, Open MPI, TPU pod). "": the
    # environment variable JAX_COORDINATOR_ADDRESS, or a single process if that is not set.
    c.processes.coordinator = ""
    c.processes.count = config_dict.placeholder(int)  # number of processes; or JAX_NUM_PROCESSES
    c.processes.index = config_dict.placeholder(int)  # this process's, from 0; or JAX_PROCESS_ID
    c.processes.join_timeout_s = 300  # seconds that processes wait for each other at the start
    c.processes.heartbeat_timeout_s = 30  # seconds without a heartbeat until a process counts dead

    c.data = ConfigDict()
    c.data.store = ""  # folder of the store (required)
    c.data.prepare = ""  # if it equals data.store, the embedded data set is made there if missing
    c.data.fit = "train"  # split to train on: "train", or "train+validation" for the final fit
    c.data.max_history = 0  # number of most recent behaviours of a history to use; 0: all

    c.model = ConfigDict()
    # "lr", "base", "wide_deep", "pnn", "deepfm" or "din"; any other name is the model of `module`.
    c.model.name = "din"
    c.model.module = ""  # your own model: a file FILE.py or an importable MODULE (docs/library.md)
    c.model.preset = "paper"  # "paper", or "released_code": the network of the authors' repository
    c.model.activation = "dice"  # of the MLP: "dice", "prelu", "sigmoid" or "relu"
    c.model.embedding_dim = 12  # width D of every table
    c.model.table_dims = ""  # width D of single tables: "item=16,category=4"
    c.model.embedding_stddev = 0.01  # of the initial embeddings (normal); row 0 starts at zero
    c.model.hidden = (200, 80)  # widths of the MLP's hidden layers
    c.model.pooling = "sum"  # "sum" or "mean", of multi-hot fields, and of histories except DIN's
    c.model.extra_fields = ()  # optional fields to use as inputs, for instance ("user_id",)
    c.model.without = ()  # tables to leave out, with their fields: ("item",) for the goods' ids
    c.model.item_bias = ""  # ad field: adds one scalar per id to the logit (not in the paper)
    c.model.interest_product = False  # also concatenate interest ∘ ad (not in the paper)
    c.model.attention = ConfigDict()  # DIN's activation unit, Eq. 3
    c.model.attention.hidden = (36,)  # widths of its hidden layers
    c.model.attention.activation = ""  # of its hidden layers; "": model.activation
    c.model.attention.difference = False  # whether ad − behaviour is also an input
    c.model.attention.outer = False  # whether ad ⊗ behaviour replaces ad ∘ behaviour as an input
    # Number of behaviours that it computes at a time; 0: all. A block needs less memory with long
    # histories (docs/performance.md).
    c.model.attention.block = 0
    c.model.wide = ConfigDict()  # wide_deep's crosses
    c.model.wide.buckets = 1_000_000  # maximum rows of a cross's table; more pairs are hashed
    c.model.wide.ad_values = 6  # cross only the first 6 ids of a multi-hot ad field (genres)
    c.model.pnn = ConfigDict()
    c.model.pnn.product = "inner"  # "inner" products of all pairs, or "outer" product of the sum
    c.model.dice = ConfigDict()  # Eq. 9
    c.model.dice.momentum = 0.99  # of the moving averages, which evaluation uses
    c.model.dice.epsilon = 1e-8  # ε, added to the standard deviation; the paper's value
    c.model.dice.mean_init = 0.0  # initial values of the moving averages
    c.model.dice.variance_init = 1.0
    c.model.dice.alpha_init = 0.0  # initial slope α; the paper does not give it
    c.model.prelu = ConfigDict()  # Eq. 8
    c.model.prelu.alpha_init = 0.25  # initial slope α, from He et al. 2015, who introduced PReLU

    c.optimizer = ConfigDict()
    c.optimizer.name = "adam"  # "adam", "sgd", "adagrad" or "rowwise_adagrad"
    # True: update only the table rows that a batch looks up, with their state ("lazy" Adam, see
    # `din_jax.optim.row_sparse.row_sparse`). False: update every row in every step, like Optax.
    # "catch_up": the result of False at the cost of True (`din_jax.optim.catch_up`).
    c.optimizer.lazy = config_dict.FieldReference(True, field_type=object)
    c.optimizer.learning_rate = 0.001  # initial learning rate lr₀; the paper: Adam 0.001, SGD 1.0
    c.optimizer.decay_rate = 0.9  # factor per decay_samples; the paper: Adam 0.9, SGD 0.1
    # Number of samples after which the learning rate is multiplied by decay_rate (required: the
    # paper does not give it).
    c.optimizer.decay_samples = config_dict.placeholder(int)
    c.optimizer.staircase = False  # decay in steps every decay_samples, instead of continuously
    c.optimizer.end_value = 0.0  # lower bound of the learning rate
    c.optimizer.clip_norm = 0.0  # clip gradients to this global norm; 0: no clipping

    c.regularizer = ConfigDict()
    c.regularizer.name = "none"  # "none", "mba" (Eq. 7), "difacto", "dropout" or "filter"
    c.regularizer.rate = 0.01  # λ of mba and difacto
    c.regularizer.dropout = 0.5  # probability that dropout drops a feature id
    c.regularizer.behaviors_only = False  # whether dropout drops only ids of behaviours
    # Tables whose ids are filtered; (): the table of each sequence's first field (the goods).
    c.regularizer.filter_tables = ()
    c.regularizer.keep = 0.033  # fraction of a table's ids, the most frequent, that filter keeps
    # "leave": filter removes rare ids from histories; "unknown": all rare ids become row 0.
    c.regularizer.rare = "leave"

    c.train = ConfigDict()
    c.train.batch_size = 256  # B, over all devices
    c.train.epochs = 3
    c.train.evaluations_per_epoch = 1  # evaluations on validation; the best weights are saved
    c.train.select = "user_weighted_auc"  # validation metric that selects them; or auc, log_loss

    c.eval = ConfigDict()
    c.eval.batch_size = 1024  # over all devices; rounded up to a multiple of their number
    c.eval.curves = False  # also score train and test at each evaluation, for learning curves
    return c.lock()


_CHOICES: dict[str, tuple[Any, ...]] = {
    "data.fit": ("train", "train+validation"),
    "model.name": ("lr", "base", "wide_deep", "pnn", "deepfm", "din"),
    "model.preset": ("paper", "released_code"),
    "model.activation": ("dice", "prelu", "sigmoid", "relu"),
    "model.attention.activation": ("", "dice", "prelu", "sigmoid", "relu"),
    "model.pooling": ("sum", "mean"),
    "model.pnn.product": ("inner", "outer"),
    "optimizer.name": ("adam", "sgd", "adagrad", "rowwise_adagrad"),
    "optimizer.lazy": (True, False, "catch_up"),
    "eval.curves": (True, False),
    "regularizer.name": ("none", "mba", "difacto", "dropout", "filter"),
    "regularizer.rare": ("leave", "unknown"),
    "train.select": ("user_weighted_auc", "auc", "log_loss"),
}
_MAX_BUCKETS = 2**31 - 2  # row indices are int32
_MINIMUM: dict[str, float] = {
    "seed": 0,
    "data.max_history": 0,
    "model.embedding_dim": 1,
    "model.embedding_stddev": 0,
    "model.attention.block": 0,
    "model.wide.buckets": 1,
    "model.wide.ad_values": 1,
    "model.dice.epsilon": 0,
    "optimizer.learning_rate": 0,
    "optimizer.decay_samples": 1,
    "optimizer.end_value": 0,
    "optimizer.clip_norm": 0,
    "regularizer.rate": 0,
    "train.batch_size": 1,
    "train.epochs": 1,
    "train.evaluations_per_epoch": 1,
    "eval.batch_size": 1,
    "processes.join_timeout_s": 1,
    "processes.heartbeat_timeout_s": 10,
}


def check(config: ConfigDict) -> None:
    """Raises `DinError` for the first key with an invalid value; the message names valid ones."""
    for key, accepted in _CHOICES.items():
        value = _get(config, key)
        if key == "model.name" and config.model.module:
            continue
        if value not in accepted:
            raise DinError(
                f"config.{key}={value!r}: expected "
                + (" or ".join(map(repr, accepted)))
                + _suggestion(value, accepted)
            )
    devices = config.devices
    if devices != "all" and (type(devices) is not int or devices < 1):
        raise DinError(f"config.devices={devices!r}: expected a whole number from 1 on, or 'all'")
    if not config.data.store:
        raise DinError("config.data.store is required: the folder of a prepared store")
    if config.optimizer.decay_samples is None:
        raise DinError(
            "config.optimizer.decay_samples is required: the number of samples after which the "
            "learning rate is multiplied by decay_rate; the paper does not give it"
        )
    if config.model.preset == "released_code" and config.model.name not in ("base", "din"):
        raise DinError(
            f"config.model.name={config.model.name!r}: preset='released_code' has only 'base' and "
            "'din'"
        )
    for key, minimum in _MINIMUM.items():
        if not _get(config, key) >= minimum:
            raise DinError(f"config.{key}={_get(config, key)!r}: expected at least {minimum}")
    for key in ("model.hidden", "model.attention.hidden"):
        widths = _get(config, key)
        if not widths or min(widths) < 1:
            raise DinError(f"config.{key}={tuple(widths)!r}: expected widths of at least 1")
    if config.model.wide.buckets > _MAX_BUCKETS:
        raise DinError(
            f"config.model.wide.buckets={config.model.wide.buckets!r}: expected at most "
            f"{_MAX_BUCKETS:,}"
        )
    if not 0 <= config.regularizer.dropout < 1:
        raise DinError(
            f"config.regularizer.dropout={config.regularizer.dropout!r}: expected 0 up to below 1"
        )
    if not 0 < config.regularizer.keep <= 1:
        raise DinError(
            f"config.regularizer.keep={config.regularizer.keep!r}: expected over 0, up to 1"
        )
    means = config.model.pooling == "mean" or config.model.preset == "released_code"
    if config.regularizer.name == "filter" and config.regularizer.rare == "leave" and means:
        raise DinError(
            "config.regularizer.rare='leave' removes ids from the history, but a mean or a softmax "
            "over it (config.model.pooling='mean', preset='released_code') would still count them; "
            "use config.regularizer.rare='unknown' or sum pooling"
        )
    if not 0 < config.optimizer.decay_rate <= 1:
        raise DinError(
            f"config.optimizer.decay_rate={config.optimizer.decay_rate!r}: expected over 0, up to 1"
        )
    if not 0 <= config.model.dice.momentum < 1:
        raise DinError(
            f"config.model.dice.momentum={config.model.dice.momentum!r}: expected 0 up to below 1"
        )


def table_dims(model: ConfigDict, tables: Iterable[str]) -> dict[str, int]:
    """The width D of each table: from `model.table_dims`, or else `model.embedding_dim`.

    Raises:
      DinError: `table_dims` can't be parsed, or names a table that is not in `tables`.
    """
    dims = dict.fromkeys(tables, model.embedding_dim)
    for part in filter(None, model.table_dims.split(",")):
        name, _, width = (text.strip() for text in part.partition("="))
        if name not in dims or not width.isdecimal() or int(width) < 1:
            raise DinError(
                f"config.model.table_dims has {part!r}: expected TABLE=WIDTH; the data set's "
                f"tables are: {', '.join(dims)}"
            )
        dims[name] = int(width)
    return dims


def _get(config: ConfigDict, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _suggestion(value: Any, accepted: Iterable[Any]) -> str:
    close = get_close_matches(str(value), [str(a) for a in accepted], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
