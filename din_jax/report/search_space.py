"""The space of a search: which values each config key may take.

A config file defines it as `SEARCH`:

    SEARCH = {
        "optimizer.learning_rate": ("log", 3e-4, 1e-2),  # from 0.0003 to 0.01, by the logarithm
        "regularizer.dropout": ("linear", 0.1, 0.9),  # from 0.1 to 0.9
        "train.batch_size": ("log", 128, 1024),  # a whole number, since the key has one
        "model.hidden": [(80, 40), (200, 80)],  # one of these values
    }

Numbers of a range that are not whole are rounded to three digits, so that they are short to write.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from din_jax.config import check
from din_jax.errors import DinError
from din_jax.report.experiments import updated

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

_NOTATION = (
    "a list of values, or ('log', low, high) or ('linear', low, high), with low below high, and "
    "above 0 if it is by the logarithm"
)
# Their values would make the validation metrics of two trials incomparable.
_FIXED = (
    "data.store",
    "data.prepare",
    "data.fit",
    "train.select",
    "train.evaluations_per_epoch",
    "eval.curves",
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A key that takes one of some values."""

    key: str
    values: tuple[Any, ...]

    def suggest(self, trial: Trial | FrozenTrial) -> Any:
        """The value that a trial takes."""
        texts = [repr(value) for value in self.values]
        return self.values[texts.index(trial.suggest_categorical(self.key, texts))]

    def contains(self, value: Any) -> bool:
        """Whether the key may take a value."""
        return value in self.values

    def parameter(self, value: Any) -> Any:
        """A value as Optuna stores it."""
        return repr(value)


@dataclasses.dataclass(frozen=True)
class Range:
    """A key that takes a number between two, which are included; a whole one if both are whole."""

    key: str
    low: float
    high: float
    log: bool

    def suggest(self, trial: Trial | FrozenTrial) -> Any:
        """The value that a trial takes."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return float(f"{trial.suggest_float(self.key, self.low, self.high, log=self.log):.3g}")

    def contains(self, value: Any) -> bool:
        """Whether the key may take a value."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def parameter(self, value: Any) -> Any:
        """A value as Optuna stores it."""
        return value


Space = tuple[Choice | Range, ...]


def default_space(config: ConfigDict) -> dict[str, Any]:
    """What is searched where a config file has no `SEARCH`: the keys that matter on most data."""
    rate, bound = config.optimizer.learning_rate, config.data.max_history
    space: dict[str, Any] = {
        "optimizer.learning_rate": ("log", float(f"{rate / 3:.3g}"), float(f"{rate * 10:.3g}")),
        "data.max_history": [0 if bound == 50 else bound, 50],
        "model.embedding_dim": [8, 16, 32],
        "model.embedding_stddev": ("log", 0.01, 0.3),
        "model.hidden": [(80, 40), (200, 80)],
    }
    if config.regularizer.name != "dropout":
        space["regularizer.behavior_dropout"] = [0.0, 0.2, 0.5]
    if config.model.name not in ("lr", "wide_deep"):  # which have no n_j for MBA
        space["regularizer.name"] = ["none", "mba"]
        space["regularizer.rate"] = ("log", 0.01, 100.0)
    if config.model.name == "din" and config.model.preset != "released_code":
        space["model.attention.hidden"] = [(36,), (80, 40)]
        space["model.attention.difference"] = [False, True]
    return space


def read_space(config: ConfigDict, space: Mapping[str, Any]) -> Space:
    """Checks a space.

    Args:
      config: the config of the keys that are not searched.
      space: {config key: list of values, or ("log" or "linear", low, high)}.

    Raises:
      DinError: it is empty, or a key or a value can't be used.
    """
    if not isinstance(space, Mapping):
        raise DinError(f"SEARCH is {space!r}; expected {{config key: values}}: {_NOTATION}")
    if not space:
        raise DinError(
            "there is nothing to search: SEARCH has no key that no flag sets; leave out some flags"
        )
    for key in space:
        if key in _FIXED:
            raise DinError(
                f"SEARCH can't have {key!r}: trials of different values would not be comparable; "
                "set it for all of them by the config or a flag"
            )
    return tuple(_parameter(config, key, values) for key, values in space.items())


def _parameter(config: ConfigDict, key: str, values: Any) -> Choice | Range:
    match values:
        case [*choices] if isinstance(values, list) and choices:
            _check_values(config, key, choices)
            return Choice(key, tuple(choices))
        case ("log" | "linear" as scale, int() | float() as low, int() | float() as high):
            log = scale == "log"
            if math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log):
                _check_values(config, key, (low, high))
                if isinstance(value_of(config, key), float):
                    low, high = float(low), float(high)
                return Range(key, low, high, log)
    raise DinError(f"SEARCH has {key!r}: {values!r}; expected {_NOTATION}")


def _check_values(config: ConfigDict, key: str, values: Iterable[Any]) -> None:
    for value in values:
        check(updated(config, {key: value}))


def value_of(config: ConfigDict, key: str) -> Any:
    """The value of a key, "optimizer.learning_rate" for instance."""
    return functools.reduce(getattr, key.split("."), config)


def written(setting: Mapping[str, Any]) -> str:
    """Formats a setting with whole keys: "optimizer.learning_rate=0.002, model.hidden=(80, 40)"."""
    return ", ".join(f"{key}={value}" for key, value in setting.items())


def as_flags(setting: Mapping[str, Any]) -> list[str]:
    """The flags of a command line that set a setting, quoted for a shell."""
    return [shlex.quote(f"--config.{key}={value}") for key, value in setting.items()]
