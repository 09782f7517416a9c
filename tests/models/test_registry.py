import jax
import numpy as np
import pytest
from compiling import quick_jit
from model_batches import RELEASED_SCHEMA, draw_samples, make_batch
from model_cases import close, f64

from din_jax.config import default_config
from din_jax.errors import DinError
from din_jax.models.registry import build_model, model_tables, notes

# Matrix factorisation: the logit is the dot product of the user's vector and the item's, times a
# weight of the config.
OWN_MODEL = """
import jax.numpy as jnp
from flax import linen as nn

from din_jax import Lookup, TableSpec, lookup

LOOKED_UP = {"user": "user_id", "item": "item"}


def tables(schema, config):
    make = nn.initializers.normal(1.0)
    return {t: TableSpec(schema.rows(t), config.embedding_dim, make) for t in LOOKED_UP}


def lookups(batch, schema, config):
    return {t: {f: Lookup(batch.fields[f], batch.weight > 0)} for t, f in LOOKED_UP.items()}


class Mine(nn.Module):
    axis_name: str | None

    @nn.compact
    def __call__(self, tables, lookups, batch, *, train):
        user, item = (lookup(tables[t], lookups[t][f]) for t, f in LOOKED_UP.items())
        weight = self.param("weight", nn.initializers.constant(3.0), ())
        z = weight * (user * item).sum(axis=1)
        return jnp.stack([jnp.zeros_like(z), z], axis=1), {"axis_name": self.axis_name}


def module(schema, config, axis_name):
    return Mine(axis_name)
"""


def own_config(module):
    config = default_config().model
    config.name, config.module, config.embedding_dim = "mine", str(module), 4
    return config


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "matrix_factorization.py"
    path.write_text(OWN_MODEL)
    return path


def test_a_model_file_of_the_user_s_own_is_built(own_file):
    config = own_config(own_file)
    model = build_model(RELEASED_SCHEMA, config, "devices")
    assert model.module.axis_name == "devices"
    assert {k: (s.rows, s.dim) for k, s in model.tables.items()} == {
        "user": (4, 4),
        "item": (11, 4),
    }
    assert model_tables(RELEASED_SCHEMA, config).keys() == model.tables.keys()
    assert list(notes([], RELEASED_SCHEMA, config)) == []

    rng = np.random.default_rng(0)
    samples = draw_samples(rng, RELEASED_SCHEMA)
    batch = make_batch(samples, RELEASED_SCHEMA, rng)
    tables = {
        k: rng.standard_normal((s.rows, s.dim)).astype(np.float32) for k, s in model.tables.items()
    }

    @quick_jit
    def run(tables, batch):
        key = jax.random.key(0)
        (logits, _), _ = model.module.init_with_output(
            key, tables, model.lookups(batch), batch, train=False
        )
        return logits

    users, items = (
        f64(tables[t])[[s["fields"][f] for s in samples]]
        for t, f in {"user": "user_id", "item": "item"}.items()
    )
    expected = 3 * (users * items).sum(axis=1)
    close(run(tables, batch)[: len(samples)], np.stack([np.zeros(len(samples)), expected], axis=1))


def test_an_importable_module_is_a_model_file_too(own_file, monkeypatch):
    monkeypatch.syspath_prepend(own_file.parent)
    config = own_config(own_file.stem)
    assert build_model(RELEASED_SCHEMA, config).tables.keys() == {"user", "item"}


def test_notes_of_a_model_file_are_told(own_file):
    with own_file.open("a") as file:
        file.write("\n\ndef notes(batches, schema, config):\n    yield f'{len(batches)} batches'\n")
    assert list(notes([1, 2], RELEASED_SCHEMA, own_config(own_file))) == ["2 batches"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"can't be imported \(FileNotFoundError: .*\); give a path FILE.py"),
        ("def tables(:\n", r"can't be imported \(SyntaxError: "),
        ("import din_jax.no_such_module\n", r"can't be imported \(ModuleNotFoundError: "),
        ("def tables(schema, config):\n    return {}\n", r"it lacks lookups, module$"),
    ],
)
def test_a_wrong_model_file_is_named_with_its_key(tmp_path, content, message):
    path = tmp_path / "wrong.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DinError, match=message) as error:
        build_model(RELEASED_SCHEMA, own_config(path))
    assert str(error.value).startswith(f"config.model.module={str(path)!r}: ")


def test_a_module_that_is_not_installed_is_named_with_its_key():
    with pytest.raises(
        DinError, match=r"config.model.module='no_such_model': it can't be imported"
    ):
        build_model(RELEASED_SCHEMA, own_config("no_such_model"))


def test_a_model_needs_an_input():
    config = default_config().model
    config.without = ("item", "category")
    with pytest.raises(DinError, match=r"config.model.without leaves no input"):
        build_model(RELEASED_SCHEMA, config)
