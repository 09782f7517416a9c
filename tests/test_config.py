"""The presets: defaults that follow `model.preset` until a key is set."""

import copy
import json
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from din_jax.checkpoint.compatibility import as_json
from din_jax.config import _ONLY_PAPER, PRESETS, check, default_config
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.models.registry import build_model
from din_jax.optim.regularizer import build_regularizer

MODELS = ("lr", "base", "wide_deep", "pnn", "deepfm", "din")
# The paper's training has neither of what other presets choose, and no period of the decay.
PAPER = {
    "model.pooling": "sum",
    "model.interest_product": False,
    "model.match_counts": False,
    "model.intensity": False,
    "model.attention.normalize": "none",
    "model.attention.position": False,
    "model.attention.match": False,
    "optimizer.decay_samples": None,
    "regularizer.name": "none",
    "regularizer.rate": 0.01,
    "train.epochs": 3,
    "train.evaluations_per_epoch": 1,
    "train.patience": 0,
}


def flat(config, prefix=""):
    """{key: value} of a config, as JSON has it."""
    values = as_json(config) if isinstance(config, ConfigDict) else config
    pairs = {}
    for key, value in values.items():
        pairs |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return pairs


def with_preset(preset, **keys):
    config = default_config()
    config.model.preset = preset
    config.update_from_flattened_dict(keys)
    return config


def test_the_default_is_the_paper_s():
    defaults = flat(default_config())
    assert defaults["model.preset"] == "paper"
    assert {key: defaults[key] for key in PAPER} == PAPER
    for key in PRESETS["paper"]:
        assert defaults[key] == PRESETS["paper"][key]
    assert flat(with_preset("released_code")) == defaults | {"model.preset": "released_code"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", MODELS)
def test_a_preset_changes_its_keys_and_no_other(preset, model):
    config = default_config()
    assert PRESETS[preset].keys() == PRESETS["paper"].keys()
    config.model.name, config.model.preset = model, preset
    own = {key: value for key, value in PRESETS[preset].items()}
    own |= {key: PRESETS["paper"][key] for key in _ONLY_PAPER.get(model, ())}
    own |= {"model.preset": preset, "model.name": model}
    assert flat(config) == flat(default_config()) | own
    config.data.store, config.optimizer.decay_samples = "store", 1
    check(config)
    config.model.preset, config.optimizer.decay_samples = "paper", None
    assert flat(config) == flat(default_config()) | {"model.name": model, "data.store": "store"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_key_that_is_set_keeps_its_value_whenever_it_is_set(preset):
    for key, value in PRESETS[preset].items():
        if value is None:
            continue
        before, after = default_config(), with_preset(preset)
        for config in (before, after):
            config.update_from_flattened_dict({key: value})
        for last in (*PRESETS, preset):
            before.model.preset = last
        assert flat(before) == flat(after) == flat(with_preset(preset))
        for config in (before, after):
            config.model.preset = "paper"
            assert flat(config) == flat(default_config()) | {key: value}


def test_copies_follow_their_own_preset_or_keep_their_values():
    original = default_config()
    original.train.epochs = 7
    copied, resolved = copy.deepcopy(original), original.copy_and_resolve_references()
    copied.model.preset = resolved.model.preset = "recommended"
    expected = flat(with_preset("recommended")) | {"train.epochs": 7}
    assert flat(copied) == expected
    assert flat(resolved) == flat(default_config()) | {
        "train.epochs": 7,
        "model.preset": "recommended",
    }
    assert flat(original) == flat(default_config()) | {"train.epochs": 7}
    assert flat(copied.copy_and_resolve_references()) == expected
    with pytest.raises(AttributeError):  # a copy is locked as well
        copied.model.prest = "paper"
    assert flat(ConfigDict(json.loads(copied.to_json()))) == expected


@pytest.mark.parametrize("backwards", [False, True])
def test_flags_set_a_preset_and_keys_in_any_order(backwards, monkeypatch):
    given = ["--config.model.preset=recommended", "--config.train.epochs=2"]
    given += ["--config.model.attention.normalize=mean", "--config.optimizer.decay_samples=500"]
    monkeypatch.setattr("sys.argv", ["train.py", *given[:: -1 if backwards else 1]])
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", default_config(), flag_values=values)
    values(sys.argv)
    assert flat(values.config) == flat(with_preset("recommended")) | {
        "train.epochs": 2,
        "model.attention.normalize": "mean",
        "optimizer.decay_samples": 500,
    }


def test_an_unknown_preset_is_named():
    config = with_preset("recomended", **{"data.store": "store"})
    with pytest.raises(DinError, match=r"preset='recomended': .* \(did you mean 'recommended'\?\)"):
        check(config)


def regularizer_of(store, model, **keys):
    """The regulariser of a recommended run, and the run's model is built."""
    store, config = Store(store), with_preset("recommended", **{"model.name": model}, **keys)
    return build_regularizer(config, store, build_model(store.schema, config.model))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_recommended_preset(planted_store, model):
    decayed = regularizer_of(planted_store, model).counts
    assert bool(decayed) == (model not in ("lr", "wide_deep"))


def test_a_model_without_n_j_still_refuses_mba_that_is_asked_for(planted_store):
    with pytest.raises(DinError, match="no counts n_j"):
        regularizer_of(planted_store, "lr", **{"regularizer.name": "mba"})
