"""All config keys, with their defaults and meanings. The files of `configs/` override some."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from din_jax.errors import DinError
from din_jax.metrics import SELECTABLE

# Keys whose defaults depend on `model.preset`; "released_code" has those of "paper".
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "model.embedding_dim": 12,
        "model.co_occurrence_stddev": 0.0,
        "model.pooling": "sum",
        "model.interest_product": False,
        "model.match_counts": False,
        "model.intensity": False,
        "model.attention.normalize": "none",
        "model.attention.position": False,
        "model.attention.age": False,
        "model.attention.match": False,
        "optimizer.lazy": True,
        "optimizer.learning_rate": 0.001,  # the paper's, of Adam; of SGD 1.0
        "optimizer.decay_samples": None,  # required: the paper does not give it
        "regularizer.name": "none",
        "regularizer.rate": 0.01,
        "train.epochs": 3,
        "train.evaluations_per_epoch": 1,
        "train.patience": 0,
        "train.ema_epochs": 0.0,
    },
    "recommended": {
        "model.embedding_dim": 32,
        "model.co_occurrence_stddev": 0.1,
        "model.pooling": "mean",
        "model.interest_product": True,
        "model.match_counts": True,
        "model.intensity": True,
        "model.attention.normalize": "softmax",
        "model.attention.position": True,
        "model.attention.age": "auto",
        "model.attention.match": True,
        "optimizer.lazy": "catch_up",
        "optimizer.learning_rate": 0.003,
        "optimizer.decay_samples": 1_000_000,
        "regularizer.name": "mba",
        "regularizer.rate": 1.0,
        "train.epochs": 12,
        "train.evaluations_per_epoch": 1,
        "train.patience": 3,
        "train.ema_epochs": 1.0,
    },
}

# Of these keys a model has the paper's values, whatever the preset: it supports no others.
_ONLY_PAPER = {
    "lr": ("model.interest_product", "regularizer.name"),  # no products, and no n_j for MBA
    "wide_deep": ("regularizer.name",),  # no n_j of crosses
}


class _Operation(NamedTuple):
    """The operation of a lazy `FieldReference`: its value is `fn(value, *args)`."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]


def _preset_value(
    model: ConfigDict, key: str, field_type: type | None = None
) -> config_dict.FieldReference:
    """A key whose value is that of `model.preset` (for `model.name`), until it is set."""
    examples = [values[key] for values in PRESETS.values() if values[key] is not None]
    references = (model.get_ref("preset"), model.get_ref("name"))
    operation = _Operation(functools.partial(_in_preset, key), references)
    return config_dict.FieldReference(examples[0], field_type=field_type, op=operation)


def _in_preset(key: str, _: Any, preset: str, model: str) -> Any:
    if preset not in PRESETS or key in _ONLY_PAPER.get(model, ()):
        preset = "paper"
    return PRESETS[preset][key]


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
    # Whether a store is compared with its checksums when it is opened: "once", if that was not done
    # before or a file has changed since; "full", in any case; "none".
    c.data.verify = "once"
    c.data.fit = "train"  # split to train on: "train", or "train+validation" for the final fit
    c.data.max_history = 0  # number of most recent behaviours of a history to use; 0: all

    c.model = ConfigDict()
    # "lr", "base", "wide_deep", "pnn", "deepfm" or "din"; any other name is the model of `module`.
    c.model.name = "din"
    c.model.module = ""  # your own model: a file FILE.py or an importable MODULE (docs/library.md)
    # "paper"; "recommended", for a log of your own: other defaults of some keys (`PRESETS`); or
    # "released_code": the network of the authors' repository. Keys that are set keep their values,
    # in a copy by `copy.deepcopy` too. (`copy_and_resolve_references` sets all keys.)
    c.model.preset = "paper"
    preset = functools.partial(_preset_value, c.model)
    c.model.activation = "dice"  # of the MLP: "dice", "prelu", "sigmoid" or "relu"
    c.model.embedding_dim = preset("model.embedding_dim")  # width D of every table
    c.model.table_dims = ""  # width D of single tables: "item=16,category=4"
    c.model.embedding_stddev = 0.01  # of the initial embeddings (normal); row 0 starts at zero
    # What it is multiplied by: "constant": 1; "width": 1 / √D.
    c.model.embedding_init = "constant"
    # Over 0: tables of behaviours begin with vectors by co-occurrence in training histories, with
    # this standard deviation (`din_jax.data.co_occurrence`).
    c.model.co_occurrence_stddev = preset("model.co_occurrence_stddev")
    # Files of vectors that tables begin with: "item=vectors.parquet,shop=shops.npy"
    # (docs/your-data.md). Rows without a vector begin as usual.
    c.model.pretrained = ""
    c.model.pretrained_trainable = True  # False: rows that have a vector stay as they are
    c.model.hidden = (200, 80)  # widths of the MLP's hidden layers
    # "sum" or "mean", of multi-hot fields, and of histories except DIN's.
    c.model.pooling = preset("model.pooling")
    c.model.extra_fields = ()  # optional fields to use as inputs, for instance ("user_id",)
    # Tables to leave out, with their fields, and numeric fields: ("item",) for the goods' ids.
    c.model.without = ()
    c.model.item_bias = ""  # ad field: adds one scalar per id to the logit (not in the paper)
    c.model.bias_fields = ()  # fields that add one scalar per id to the logit (not in the paper)
    # Whether to concatenate interest ∘ ad as well (not in the paper).
    c.model.interest_product = preset("model.interest_product")
    # Whether DIN's MLP also takes, for each field of a history, how many behaviours n have an id of
    # the ad, log(1 + n), and their fraction n / H; and log(1 + H) (not in the paper).
    c.model.match_counts = preset("model.match_counts")
    # Whether to concatenate the intensity of DIN's interests, log(1 + Σσ(w)) and Σσ(w) / H of the
    # unit's outputs w over a history of H behaviours: normalized weights lose it.
    c.model.intensity = preset("model.intensity")
    c.model.attention = ConfigDict()  # DIN's activation unit, Eq. 3
    c.model.attention.hidden = (36,)  # widths of its hidden layers
    c.model.attention.activation = ""  # of its hidden layers; "": model.activation
    c.model.attention.difference = False  # whether ad − behaviour is also an input
    c.model.attention.outer = False  # whether ad ⊗ behaviour replaces ad ∘ behaviour as an input
    # How the unit's outputs w become weights: "none": w, as in Eq. 3; over a history of H
    # behaviours "mean": w / H, "sqrt": w / √H, "softmax": exp(w) / Σ exp(w); "sigmoid": σ(w).
    c.model.attention.normalize = preset("model.attention.normalize")
    c.model.attention.bias_init = 0.0  # initial value of the output's bias
    # Whether further inputs are (not in the paper): the log bucket of a behaviour's place from the
    # end of the history; the log bucket of its age at the impression ("auto": if the store has
    # times; True: it must have them); for each field, whether the behaviour has an id of the ad.
    c.model.attention.position = preset("model.attention.position")
    c.model.attention.age = preset("model.attention.age", field_type=object)
    c.model.attention.match = preset("model.attention.match")
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
    c.optimizer.lazy = preset("optimizer.lazy", field_type=object)
    c.optimizer.learning_rate = preset("optimizer.learning_rate")  # the initial one, lr₀
    # Factors of the tables' learning rates: "0.5" of all, "user=0.1" of one, "0.5,user=0.1".
    c.optimizer.table_rates = ""
    # Number of samples over which the learning rate rises linearly from 0; 0: no warm-up.
    c.optimizer.warmup_samples = 0
    c.optimizer.decay_rate = 0.9  # factor per decay_samples; the paper: Adam 0.9, SGD 0.1
    # Number of samples after which the learning rate is multiplied by decay_rate (required: the
    # paper does not give it).
    c.optimizer.decay_samples = preset("optimizer.decay_samples")
    c.optimizer.staircase = False  # decay in steps every decay_samples, instead of continuously
    c.optimizer.end_value = 0.0  # lower bound of the learning rate
    c.optimizer.clip_norm = 0.0  # clip gradients to this global norm; 0: no clipping

    c.regularizer = ConfigDict()
    # "none", "mba" (Eq. 7), "difacto", "dropout" or "filter".
    c.regularizer.name = preset("regularizer.name")
    c.regularizer.rate = preset("regularizer.rate")  # λ of mba and difacto
    c.regularizer.dropout = 0.5  # probability that dropout drops a feature id
    c.regularizer.behaviors_only = False  # whether dropout drops only ids of behaviours
    # Probability that an id of a behaviour is dropped in training, beside any regularizer but
    # dropout. It can help where histories are long and users have many samples each.
    c.regularizer.behavior_dropout = 0.0
    # Tables whose ids are filtered; (): the table of each sequence's first field (the goods).
    c.regularizer.filter_tables = ()
    c.regularizer.keep = 0.033  # fraction of a table's ids, the most frequent, that filter keeps
    # "leave": filter removes rare ids from histories; "unknown": all rare ids become row 0.
    c.regularizer.rare = "leave"

    c.train = ConfigDict()
    c.train.batch_size = 256  # B, over all devices
    c.train.epochs = preset("train.epochs")
    # Evaluations on validation; the best weights are saved.
    c.train.evaluations_per_epoch = preset("train.evaluations_per_epoch")
    # Stop after this many evaluations in a row that are not the best so far; 0: never.
    c.train.patience = preset("train.patience")
    # Half-life, in epochs, of an exponential moving average (EMA) of the weights, taken eight times
    # an epoch, which is scored in their place; 0: the weights themselves are scored.
    c.train.ema_epochs = preset("train.ema_epochs")
    # Seconds after which the last state is saved within an epoch too; 0: only at evaluations.
    c.train.checkpoint_every_s = 600.0
    # Folder of another run of this model and store: begin with its best weights, at step 0.
    c.train.init_from = ""
    # Validation metric that selects them; or auc, log_loss; if the store has sample weights, also
    # weighted_user_weighted_auc, weighted_auc, weighted_log_loss.
    c.train.select = "user_weighted_auc"

    c.eval = ConfigDict()
    c.eval.batch_size = 1024  # over all devices; rounded up to a multiple of their number
    c.eval.curves = False  # also score train and test at each evaluation, for learning curves
    c.eval.baselines = True  # show the best simple baseline beside the test metrics
    return c.lock()


_CHOICES: dict[str, tuple[Any, ...]] = {
    "data.fit": ("train", "train+validation"),
    "data.verify": ("once", "full", "none"),
    "model.name": ("lr", "base", "wide_deep", "pnn", "deepfm", "din"),
    "model.preset": ("paper", "recommended", "released_code"),
    "model.activation": ("dice", "prelu", "sigmoid", "relu"),
    "model.attention.activation": ("", "dice", "prelu", "sigmoid", "relu"),
    "model.pooling": ("sum", "mean"),
    "model.embedding_init": ("constant", "width"),
    "model.attention.normalize": ("none", "mean", "sqrt", "softmax", "sigmoid"),
    "model.pnn.product": ("inner", "outer"),
    "model.attention.age": (True, False, "auto"),
    "optimizer.name": ("adam", "sgd", "adagrad", "rowwise_adagrad"),
    "optimizer.lazy": (True, False, "catch_up"),
    "eval.curves": (True, False),
    "eval.baselines": (True, False),
    "regularizer.name": ("none", "mba", "difacto", "dropout", "filter"),
    "regularizer.rare": ("leave", "unknown"),
    "train.select": SELECTABLE,
}
_MAX_BUCKETS = 2**31 - 2  # row indices are int32
_MINIMUM: dict[str, float] = {
    "seed": 0,
    "data.max_history": 0,
    "model.embedding_dim": 1,
    "model.embedding_stddev": 0,
    "model.co_occurrence_stddev": 0,
    "model.attention.block": 0,
    "model.wide.buckets": 1,
    "model.wide.ad_values": 1,
    "model.dice.epsilon": 0,
    "optimizer.learning_rate": 0,
    "optimizer.decay_samples": 1,
    "optimizer.end_value": 0,
    "optimizer.warmup_samples": 0,
    "optimizer.clip_norm": 0,
    "regularizer.rate": 0,
    "train.batch_size": 1,
    "train.epochs": 1,
    "train.evaluations_per_epoch": 1,
    "train.patience": 0,
    "train.ema_epochs": 0,
    "train.checkpoint_every_s": 0,
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
        if _get(config, key) == math.inf:
            raise DinError(f"config.{key}=inf: expected a finite number")
    for key in ("model.hidden", "model.attention.hidden"):
        widths = _get(config, key)
        if not widths or min(widths) < 1:
            raise DinError(f"config.{key}={tuple(widths)!r}: expected widths of at least 1")
    if config.model.wide.buckets > _MAX_BUCKETS:
        raise DinError(
            f"config.model.wide.buckets={config.model.wide.buckets!r}: expected at most "
            f"{_MAX_BUCKETS:,}"
        )
    for key in ("regularizer.dropout", "regularizer.behavior_dropout"):
        if not 0 <= _get(config, key) < 1:
            raise DinError(f"config.{key}={_get(config, key)!r}: expected 0 up to below 1")
    if config.regularizer.name == "dropout" and config.regularizer.behavior_dropout:
        raise DinError(
            f"config.regularizer.behavior_dropout={config.regularizer.behavior_dropout!r} is for "
            "other regularizers than config.regularizer.name='dropout', which has "
            "config.regularizer.dropout, and config.regularizer.behaviors_only for ids of "
            "behaviors alone; set it to 0"
        )
    if not 0 < config.regularizer.keep <= 1:
        raise DinError(
            f"config.regularizer.keep={config.regularizer.keep!r}: expected over 0, up to 1"
        )
    if config.train.init_from and config.model.pretrained and config.model.pretrained_trainable:
        raise DinError(
            f"config.train.init_from={config.train.init_from!r} and config.model.pretrained="
            f"{config.model.pretrained!r}: a trained table begins with one of them; leave "
            "config.model.pretrained empty, or keep its rows as they are with "
            "config.model.pretrained_trainable=False"
        )
    normalizes = config.model.attention.normalize in ("mean", "sqrt", "softmax")
    counts = config.model.match_counts or config.model.intensity
    means = (
        config.model.pooling == "mean"
        or config.model.preset == "released_code"
        or (config.model.name == "din" and (normalizes or counts))
    )
    if config.regularizer.name == "filter" and config.regularizer.rare == "leave" and means:
        raise DinError(
            "config.regularizer.rare='leave' removes ids from the history, but a mean, a softmax "
            "or a fraction of it (config.model.pooling='mean', config.model.attention.normalize, "
            "config.model.match_counts, config.model.intensity, preset='released_code') would "
            "still count them; use config.regularizer.rare='unknown', or sums"
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
