"""The generated log has the layout of Taobao's UserBehavior."""

from pathlib import Path

import polars as pl

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_rows_of_a_user_stand_together_in_order_of_time(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import prepare_log

    monkeypatch.setattr(prepare_log, "ITEMS", 5000)
    monkeypatch.setattr(prepare_log, "_BLOCK", 3000)
    names = ["user", "item", "category", "behavior", "time"]
    files = [tmp_path / name for name in ("a.csv", "b.csv")]
    for file in files:
        prepare_log.write(file, 8000)
    assert files[0].read_bytes() == files[1].read_bytes()
    frame = pl.read_csv(files[0], has_header=False, new_columns=names)
    assert len(frame) == 8000
    assert frame["user"].unique(maintain_order=True).to_list() == list(range(1, 81))
    assert frame["user"].is_sorted()
    assert frame.select(pl.col("time").is_sorted().over("user").all()).item()
    assert frame["time"].is_between(prepare_log.BEGIN, prepare_log.END).all()
    assert frame["item"].is_between(1, 5000).all()
    assert frame.group_by("item").agg(pl.col("category").n_unique())["category"].max() == 1
    assert set(frame["behavior"]) == {"pv", "cart", "fav", "buy"}
    # In order of popularity, the first tenth of items has ln(1500 / 1000) / ln(6) of the draws.
    first = prepare_log.shuffled(pl.int_range(500, eager=True).to_numpy(), 5000) + 1
    assert abs(frame["item"].is_in(first).mean() - 0.226) < 0.03
