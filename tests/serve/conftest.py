import pytest
from runs import tiny_config

import din_jax
from din_jax.export.exporting import export
from din_jax.prepare import planted


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    """The folder of a small exported model."""
    folder = tmp_path_factory.mktemp("exported")
    planted.prepare(folder / "store", users=60)
    din_jax.train(tiny_config(folder / "store"), folder / "run", test=False)
    export(folder / "run", folder / "model", platforms=["cpu"])
    return folder / "model"
