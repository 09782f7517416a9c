import pytest
from untrained import prepare_log, random_run

from din_jax.export.exporting import export_run


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    """The folder of a small exported model with every kind of input."""
    folder = tmp_path_factory.mktemp("exported")
    prepare_log(folder, rows=400)
    random_run(folder / "store", folder / "run")
    export_run(folder / "run", folder / "model", platforms=["cpu"])
    return folder / "model"
