"""Every config key, its default and what it means. A file of `configs/` changes what it needs."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ml_collections import ConfigDict, config_dict

from din_jax.errors import DinError


def default_config() -> ConfigDict:
    """A new config with every key; `configs/*.py` start from it.

    It is locked: to set a key that is not there raises.
    """
    c = ConfigDict()
    c.seed = 0  # of the initial weights and the order of the samples
    # How many devices train together, or "all"; a batch is split evenly among them.
    c.devices = config_dict.FieldReference(1, field_type=object)
    # Where tables lie: "replicated" (whole on every device), "sharded" (a block of rows on each),
    # or single ones: "item=sharded", or all but some: "sharded,category=replicated".
    c.placement = "replicated"

    c.processes = ConfigDict()  # of a run on several hosts (docs/scaling.md)
    # HOST:PORT of process 0; "auto" where JAX finds the processes (Slurm, Open MPI, a TPU pod).
    c.processes.coordinator = ""  # "" takes JAX_COORDINATOR_ADDRESS, or runs alone
    c.processes.count = config_dict.placeholder(int)  # or JAX_NUM_PROCESSES
    c.processes.index = config_dict.placeholder(int)  # of this process, from 0; or JAX_PROCESS_ID
    c.processes.join_timeout_s = 300  # how long processes wait for each other at the start
    c.processes.heartbeat_timeout_s = 30  # after which a process that is not heard of is given up

    c.data = ConfigDict()
    c.data.store = ""  # folder of the store (required)
    c.data.prepare = ""  # where the embedded data set is made, if `data.store` asks for it there
    c.data.fit = "train"  # the split trained on: "train", or "train+validation" for the final fit
    c.data.max_history = 0  # use the most recent behaviours of a history; 0: all of them

    c.model = ConfigDict()
    c.model.name = "din"  # "lr", "base", "wide_deep", "pnn", "deepfm", "din", or that of `module`
    # A model file of your own, FILE.py or an importable MODULE: what any other name stands for.
    c.model.module = ""  # (docs/library.md)
    c.model.preset = "paper"  # "paper", or "released_code" for the structure of the authors' code
    c.model.activation = "dice"  # "dice", "prelu", "sigmoid" or "relu"
    c.model.embedding_dim = 12  # D of every table
    c.model.table_dims = ""  # D of single tables: "item=16,category=4"
    c.model.embedding_stddev = 0.01  # of the initial embeddings, normal; row 0 begins at zero
    c.model.hidden = (200, 80)  # widths of the hidden layers
    c.model.pooling = "sum"  # "sum" or "mean": a history but DIN's, and any list
    c.model.extra_fields = ()  # optional fields taken as inputs, "user_id" for instance
    c.model.without = ()  # tables that no input reads, the goods' ids for instance: ("item",)
    c.model.item_bias = ""  # an ad field: adds one scalar an id to the logit (not in the paper)
    c.model.interest_product = False  # also concatenate interest ∘ ad (not in the paper)
    c.model.attention = ConfigDict()  # DIN's activation unit, Eq. 3
    c.model.attention.hidden = (36,)  # widths of its hidden layers
    c.model.attention.activation = ""  # of its hidden layers; "" is the model's
    c.model.attention.difference = False  # also feed ad − behaviour
    c.model.attention.outer = False  # feed the literal outer product in place of ad ∘ behaviour
    # Behaviours computed at once, 0: all. Less memory for long histories (docs/performance.md).
    c.model.attention.block = 0
    c.model.wide = ConfigDict()  # wide_deep's crosses
    c.model.wide.buckets = 1_000_000  # of each; fewer where there are not as many pairs of ids
    c.model.wide.ad_values = 6  # of a multi-hot ad field, a film's genres, the first so many
    c.model.pnn = ConfigDict()
    c.model.pnn.product = "inner"  # "inner", or "outer" of the groups' sum
    c.model.dice = ConfigDict()  # Eq. 9
    c.model.dice.momentum = 0.99  # of the moving averages used in evaluation
    c.model.dice.epsilon = 1e-8  # beside the standard deviation, as the paper sets it
    c.model.dice.mean_init = 0.0  # the moving averages before the first step
    c.model.dice.variance_init = 1.0
    c.model.dice.alpha_init = 0.0  # slope of a unit's closed side; the paper leaves it open
    c.model.prelu = ConfigDict()  # Eq. 8
    c.model.prelu.alpha_init = 0.25  # He et al. 2015, who brought PReLU

    c.optimizer = ConfigDict()
    c.optimizer.name = "adam"  # "adam", "sgd", "adagrad" or "rowwise_adagrad" (see optim.py)
    # Move only the table rows that a batch looks up, and their state ("lazy" Adam: see
    # `din_jax.optim.row_sparse.row_sparse`). False: every row in every step, as Optax has it.
    c.optimizer.lazy = True
    c.optimizer.learning_rate = 0.001  # lr₀; the paper: Adam 0.001, SGD 1.0
    c.optimizer.decay_rate = 0.9  # the paper: 0.9 with Adam, 0.1 with SGD
    # Samples after which the rate has fallen by decay_rate (required: the paper does not say).
    c.optimizer.decay_samples = config_dict.placeholder(int)
    c.optimizer.staircase = False  # fall at once every decay_samples, not smoothly
    c.optimizer.end_value = 0.0  # the rate never falls below
    c.optimizer.clip_norm = 0.0  # clip gradients to this global norm; 0: don't

    c.regularizer = ConfigDict()
    c.regularizer.name = "none"  # "none", "mba" (Eq. 7), "difacto", "dropout" or "filter"
    c.regularizer.rate = 0.01  # λ of mba and difacto
    c.regularizer.dropout = 0.5  # probability that dropout drops a feature id
    c.regularizer.behaviors_only = False  # drop only ids of behaviours
    # Tables whose ids are filtered; () is the table of each sequence's first field: the goods.
    c.regularizer.filter_tables = ()
    c.regularizer.keep = 0.033  # fraction of a table's ids that filter leaves, the most frequent
    c.regularizer.rare = "leave"  # rare visited ids leave the history; "unknown": all are row 0

    c.train = ConfigDict()
    c.train.batch_size = 256  # B, over all devices
    c.train.epochs = 3
    c.train.evaluations_per_epoch = 1  # on validation; the best one's weights are saved
    c.train.select = "user_weighted_auc"  # the validation metric that the best one is chosen by

    c.eval = ConfigDict()
    c.eval.batch_size = 1024  # over all devices; rounded up to a multiple of their number
    # At each evaluation also score train and test, for figures; nothing is chosen by them.
    c.eval.curves = False
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
    "optimizer.lazy": (True, False),
    "eval.curves": (True, False),
    "regularizer.name": ("none", "mba", "difacto", "dropout", "filter"),
    "regularizer.rare": ("leave", "unknown"),
    "train.select": ("user_weighted_auc", "auc", "log_loss"),
}
_MOST_BUCKETS = 2**31 - 2  # rows are numbered by 32 bits
_AT_LEAST: dict[str, float] = {
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
    """Raises `DinError` at the first key whose value can't be used, naming what can."""
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
    wanted = config.devices
    if wanted != "all" and (type(wanted) is not int or wanted < 1):
        raise DinError(f"config.devices={wanted!r}: expected a whole number from 1 on, or 'all'")
    if not config.data.store:
        raise DinError("config.data.store is required: the folder of a prepared store")
    if config.optimizer.decay_samples is None:
        raise DinError(
            "config.optimizer.decay_samples is required: the learning rate falls by decay_rate "
            "every so many samples, and the paper does not give the period"
        )
    if config.model.preset == "released_code" and config.model.name not in ("base", "din"):
        raise DinError(
            f"config.model.name={config.model.name!r}: preset='released_code' has 'base' and "
            "'din' alone"
        )
    for key, least in _AT_LEAST.items():
        if not _get(config, key) >= least:
            raise DinError(f"config.{key}={_get(config, key)!r}: expected at least {least}")
    for key in ("model.hidden", "model.attention.hidden"):
        widths = _get(config, key)
        if not widths or min(widths) < 1:
            raise DinError(f"config.{key}={tuple(widths)!r}: expected widths of at least 1")
    if config.model.wide.buckets > _MOST_BUCKETS:
        raise DinError(
            f"config.model.wide.buckets={config.model.wide.buckets!r}: expected at most "
            f"{_MOST_BUCKETS:,}"
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
            "config.regularizer.rare='leave' takes ids out of the history, but a mean or a softmax "
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
    """D of each table: `model.table_dims` where it names the table, else `model.embedding_dim`.

    Raises:
      DinError: `table_dims` can't be read, or names what is not one of `tables`.
    """
    dims = dict.fromkeys(tables, model.embedding_dim)
    for part in filter(None, model.table_dims.split(",")):
        name, _, width = (text.strip() for text in part.partition("="))
        if name not in dims or not width.isdecimal() or int(width) < 1:
            raise DinError(
                f"config.model.table_dims has {part!r}: expected TABLE=WIDTH, with a table of the "
                f"data set: {', '.join(dims)}"
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
