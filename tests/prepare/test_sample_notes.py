"""What `prepare log` notes of histories that the config of a log cuts."""

import runpy
from pathlib import Path

import polars as pl
import pytest

from din_jax.prepare import log
from din_jax.prepare.log import sample_notes

ROOT = Path(__file__).parent.parent.parent
SPEC = """
[impressions]
path = "log.parquet"
label = "click"
user = "user"
item = "item"
time = "at"
time_unit = "s"
[split]
by = "time"
validation = 0.1
test = 0.1
"""


def test_the_bound_is_that_of_the_config():
    config = runpy.run_path(str(ROOT / "configs/log.py"))["get_config"]()
    assert config.data.max_history == sample_notes.BOUND


@pytest.mark.parametrize("clicks", [1001, 1400])
def test_training_histories_beyond_the_bound_are_noted(tmp_path, clicks):
    """User 0 clicks all the time, before ten others come; all times differ."""
    user = [0] * clicks + [1 + i % 10 for i in range(400)]
    frame = pl.DataFrame({"user": user, "item": [i % 50 for i in range(len(user))]})
    frame = frame.with_columns(
        at=pl.int_range(pl.len()), click=(pl.int_range(pl.len()) % 4 < 3).cast(pl.Int8)
    )
    frame = frame.with_columns(click=pl.when(pl.col("user") == 0).then(1).otherwise("click"))
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "spec.toml").write_text(SPEC)
    notes = log.prepare(tmp_path / "spec.toml", tmp_path / "store")["notes"]
    (note,) = [n for n in notes if "behaviours, up to" in n] or [None]
    training = int(0.8 * len(user))
    longer = min(clicks, training) - 1001  # the first 1001 have at most 1000 clicks before them
    if not longer:
        assert note is None
        return
    assert note.startswith(
        f"history has more than 1,000 behaviours, up to {1000 + longer:,}, in "
        f"{longer / training:.1%} of the training samples"
    )
