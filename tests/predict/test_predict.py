"""Predictions of rows against the evaluation of the store that was prepared of them."""

import numpy as np
import polars as pl
import pytest
from runs import command
from untrained import prepare_log, random_run

from din_jax.errors import DinError
from din_jax.predict import predicting
from din_jax.predict.table_writer import TableWriter
from din_jax.training.trained import evaluate, load_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a log, its store and a run on it; the log."""
    folder = tmp_path_factory.mktemp("predict")
    frame = prepare_log(folder)
    random_run(folder / "store", folder / "run", **{"eval.batch_size": 64})
    return folder, frame


def test_rows_have_the_probabilities_of_their_samples(trained, tmp_path, monkeypatch):
    folder, frame = trained
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    shuffled.write_parquet(tmp_path / "new.parquet")
    compiled = []
    score_steps = predicting.Run.evaluator.__globals__["score_steps"]
    monkeypatch.setitem(
        predicting.Run.evaluator.__globals__,
        "score_steps",
        lambda *a, **k: compiled.append(1) or score_steps(*a, **k),
    )
    done = predicting.predict_file(
        folder / "run", tmp_path / "new.parquet", tmp_path / "out.parquet", block_rows=1100
    )
    assert compiled == [1], "three blocks are scored by one step"
    assert done.rows == 3000 and not done.unknown["item"]
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found.drop("p_click").equals(shuffled)
    expected = evaluate(folder / "run", "test").probabilities
    in_test = found.sort("time").tail(len(expected))
    np.testing.assert_allclose(in_test["p_click"], expected, atol=1e-6)
    assert np.std(expected) > 0.05


@pytest.mark.long
def test_rows_without_labels_and_with_unknown_ids_as_a_command(trained, tmp_path):
    folder, frame = trained
    new = (
        frame.head(500)
        .drop("click", "place")
        .with_columns(item=pl.when(pl.col("time") % 2 == 0).then(pl.lit("new")).otherwise("item"))
    )
    new.write_csv(tmp_path / "new.csv")
    call = ["-m", "din_jax.predict", "--workdir", folder / "run", "--data", tmp_path / "new.csv"]
    refused = command(*call, "--out", tmp_path / "out.jsonl")
    assert refused.returncode == 1 and "with --behaviours" in refused.stderr
    assert refused.stderr.count("\n") == 1
    call += ["--behaviours", folder / "impressions.parquet", "--out", tmp_path / "out.jsonl"]
    done = command(*call)
    assert done.returncode == 0, done.stderr
    count = int((new["item"] == "new").sum())
    assert f"item: {count} values unknown to the model, or missing\n" in done.stdout
    found = pl.read_ndjson(tmp_path / "out.jsonl")
    assert found["time"].cast(pl.Int64).to_list() == new["time"].to_list()
    assert found["p_click"].is_between(0, 1).all() and found["p_click"].n_unique() > 300
    again = command(*call)
    assert again.returncode == 1 and "out.jsonl exists already" in again.stderr


def test_embeddings_have_the_ids_of_the_data(trained, tmp_path):
    folder, _ = trained
    run, state = load_run(folder / "run")
    count = predicting.write_embeddings(folder / "run", "item", tmp_path / "items.parquet")
    frame = pl.read_parquet(tmp_path / "items.parquet")
    assert count == len(frame) and set(frame["id"]) <= {f"i{k}" for k in range(40)}
    ids = run.store.vocabulary("item").ids.to_list()
    for name, vector in frame.iter_rows():
        np.testing.assert_array_equal(vector, state.tables["item"][ids.index(name)])
    with pytest.raises(DinError, match=r"no embedding table 'brand'; it has: .*item.*tags"):
        predicting.write_embeddings(folder / "run", "brand", tmp_path / "brands.parquet")


def test_a_table_appears_whole_or_not_at_all(tmp_path):
    frame = pl.DataFrame({"a": [1, 2], "b": [None, None]})
    for suffix in ("parquet", "csv", "jsonl"):
        path = tmp_path / f"t.{suffix}"
        with pytest.raises(DinError, match="no rows"), TableWriter(path) as writer:
            writer.finish()
        assert [*tmp_path.iterdir()] == []
        with TableWriter(path) as writer:
            writer.append(frame)
            writer.append(frame.with_columns(b=pl.Series(["x", None])))
            writer.finish()
        assert [*tmp_path.iterdir()] == [path]
        read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}[suffix]
        assert read(path).rows() == [(1, None), (2, None), (1, "x"), (2, None)]
        path.unlink()
    with pytest.raises(DinError, match=r"suffix '.txt' is not a table's"):
        TableWriter(tmp_path / "t.txt")
    lists = pl.DataFrame({"a": [[1]]})
    with pytest.raises(DinError, match="'a' has lists"), TableWriter(tmp_path / "t.csv") as writer:
        writer.append(lists)
