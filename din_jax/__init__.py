"""The Deep Interest Network (Zhou et al., KDD 2018, arXiv 1706.06978) in JAX and Flax.

The names below are the public API (docs/library.md). Everything else is private. A name is imported
when it is first used, so that `import din_jax` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from din_jax.config import default_config as default_config
    from din_jax.data.loader import batches as batches
    from din_jax.data.packing import Batch as Batch, Behaviors as Behaviors, Packed as Packed
    from din_jax.data.schema import (
        BehaviorField as BehaviorField,
        Field as Field,
        NumericBehaviorField as NumericBehaviorField,
        NumericField as NumericField,
        Schema as Schema,
        Sequence as Sequence,
        Table as Table,
    )
    from din_jax.data.source import BatchSource as BatchSource
    from din_jax.data.store import Store as Store
    from din_jax.data.store_writer import StoreWriter as StoreWriter
    from din_jax.data.titles import Titles as Titles
    from din_jax.errors import (
        DinError as DinError,
        Diverged as Diverged,
        Interrupted as Interrupted,
    )
    from din_jax.export.encoding import InvalidRequest as InvalidRequest
    from din_jax.export.exporting import export_run as export_run
    from din_jax.intervals import Interval as Interval, bootstrap as bootstrap
    from din_jax.metrics import (
        all_metrics as all_metrics,
        auc as auc,
        log_loss as log_loss,
        rela_impr as rela_impr,
        user_auc as user_auc,
        user_weighted_auc as user_weighted_auc,
    )
    from din_jax.models.base import BaseModel as BaseModel
    from din_jax.models.deepfm import DeepFM as DeepFM
    from din_jax.models.din import DIN as DIN
    from din_jax.models.lr import LR as LR
    from din_jax.models.pnn import PNN as PNN
    from din_jax.models.registry import Model as Model, build_model as build_model
    from din_jax.models.wide_deep import WideDeep as WideDeep
    from din_jax.nn.activation_unit import ActivationUnit as ActivationUnit
    from din_jax.nn.activations import Dice as Dice, PReLU as PReLU
    from din_jax.nn.codes import (
        Code as Code,
        matches as matches,
        position_code as position_code,
    )
    from din_jax.nn.embedding import (
        Lookup as Lookup,
        TableSpec as TableSpec,
        init_tables as init_tables,
        lookup as lookup,
    )
    from din_jax.nn.losses import negative_log_likelihood as negative_log_likelihood
    from din_jax.nn.mlp import MLP as MLP
    from din_jax.nn.numbers import number_inputs as number_inputs
    from din_jax.nn.pooling import (
        normalize_weights as normalize_weights,
        pool_packed as pool_packed,
        segment_mean as segment_mean,
        segment_pool as segment_pool,
        segment_softmax as segment_softmax,
        weighted_pool as weighted_pool,
    )
    from din_jax.nn.present_rows import (
        Rows as Rows,
        apply_row_updates as apply_row_updates,
        gather_rows as gather_rows,
        present_rows as present_rows,
    )
    from din_jax.optim.catch_up import catch_up as catch_up
    from din_jax.optim.dense import (
        dense_adam as dense_adam,
        dense_rmsprop as dense_rmsprop,
        dense_sgd as dense_sgd,
    )
    from din_jax.optim.mba import (
        difacto_decay as difacto_decay,
        mba_decay as mba_decay,
        on_tables as on_tables,
    )
    from din_jax.optim.row_sparse import row_sparse as row_sparse
    from din_jax.optim.rowwise_adagrad import rowwise_adagrad as rowwise_adagrad
    from din_jax.predict.predicting import (
        predict_file as predict_file,
        write_embeddings as write_embeddings,
    )
    from din_jax.serve.ranking import Ranking as Ranking
    from din_jax.serve.scorer import Scorer as Scorer, Visitor as Visitor
    from din_jax.step.score import score_step as score_step
    from din_jax.step.state import TrainState as TrainState, init_state as init_state
    from din_jax.step.train import train_step as train_step
    from din_jax.training.evaluation import Scores as Scores
    from din_jax.training.loop import train as train
    from din_jax.training.run import Run as Run, open_run as open_run
    from din_jax.training.trained import evaluate as evaluate, load_run as load_run

__version__ = "0.2.0"

# Where each public name is defined.
_MODULES = {
    "config": ("default_config",),
    "data.loader": ("batches",),
    "data.packing": ("Batch", "Behaviors", "Packed"),
    "data.schema": (
        "BehaviorField",
        "Field",
        "NumericBehaviorField",
        "NumericField",
        "Schema",
        "Sequence",
        "Table",
    ),
    "data.source": ("BatchSource",),
    "data.store": ("Store",),
    "data.store_writer": ("StoreWriter",),
    "data.titles": ("Titles",),
    "errors": ("DinError", "Diverged", "Interrupted"),
    "export.encoding": ("InvalidRequest",),
    "export.exporting": ("export_run",),
    "intervals": ("Interval", "bootstrap"),
    "metrics": ("all_metrics", "auc", "log_loss", "rela_impr", "user_auc", "user_weighted_auc"),
    "models.base": ("BaseModel",),
    "models.deepfm": ("DeepFM",),
    "models.din": ("DIN",),
    "models.lr": ("LR",),
    "models.pnn": ("PNN",),
    "models.registry": ("Model", "build_model"),
    "models.wide_deep": ("WideDeep",),
    "nn.activation_unit": ("ActivationUnit",),
    "nn.activations": ("Dice", "PReLU"),
    "nn.codes": ("Code", "matches", "position_code"),
    "nn.embedding": ("Lookup", "TableSpec", "init_tables", "lookup"),
    "nn.losses": ("negative_log_likelihood",),
    "nn.mlp": ("MLP",),
    "nn.numbers": ("number_inputs",),
    "nn.pooling": (
        "normalize_weights",
        "pool_packed",
        "segment_mean",
        "segment_pool",
        "segment_softmax",
        "weighted_pool",
    ),
    "nn.present_rows": ("Rows", "apply_row_updates", "gather_rows", "present_rows"),
    "optim.catch_up": ("catch_up",),
    "optim.dense": ("dense_adam", "dense_rmsprop", "dense_sgd"),
    "optim.mba": ("difacto_decay", "mba_decay", "on_tables"),
    "optim.row_sparse": ("row_sparse",),
    "optim.rowwise_adagrad": ("rowwise_adagrad",),
    "predict.predicting": ("predict_file", "write_embeddings"),
    "serve.ranking": ("Ranking",),
    "serve.scorer": ("Scorer", "Visitor"),
    "step.score": ("score_step",),
    "step.state": ("TrainState", "init_state"),
    "step.train": ("train_step",),
    "training.evaluation": ("Scores",),
    "training.loop": ("train",),
    "training.run": ("Run", "open_run"),
    "training.trained": ("evaluate", "load_run"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'din_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"din_jax.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_MODULE_OF, "__version__"])
