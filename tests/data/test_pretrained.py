"""Vectors by id and by row, against dictionaries; and files that are refused."""

import re

import numpy as np
import polars as pl
import pytest
from small_stores import write_ragged

from din_jax.data.pretrained import read_pretrained
from din_jax.data.store import Store
from din_jax.errors import DinError

DIMS = {"item": 2, "tag": 3, "film": 4, "item-bias": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A store of the items a, b, c, which training has 5, 6 and 7 times."""
    path = tmp_path_factory.mktemp("small") / "store"
    write_ragged(path)
    return Store(path)


def as_written(ids, kind):
    """Whole numbers as files may have them."""
    if kind == "text":
        return pl.Series([str(i) for i in ids])
    return pl.Series(ids, dtype={"int": pl.Int64, "short": pl.UInt16, "float": pl.Float64}[kind])


@pytest.mark.parametrize("kind", ["int", "short", "float", "text"])
def test_ids_are_found_whatever_type_they_are_written_in(rich, tmp_path, kind):
    store, rng = rich[0], np.random.default_rng(0)
    ids = rng.permutation(np.arange(90, 190, 3)).tolist()  # films are 100 to 148
    vectors = rng.standard_normal((len(ids), 4)).tolist()
    vectors[ids.index(105)] = None
    if kind == "float":  # no film: its whole part is one
        ids, vectors = [*ids, 103.5], [*vectors, [0.0] * 4]
    frame = pl.DataFrame({"more": 0, "vector": vectors, "id": as_written(ids, kind)})
    frame.write_parquet(tmp_path / "film.parquet")
    found = read_pretrained(f"film={tmp_path}/film.parquet", store, DIMS)["film"]

    by_id = {i: vector for i, vector in zip(ids, vectors, strict=True) if vector is not None}
    vocabulary, counts = store.vocabulary("film")
    rows = [row for row, i in enumerate(vocabulary.to_list()) if i in by_id]
    assert len(rows) == 15 and found.rows.tolist() == rows and found.rows.dtype == np.int32
    expected = np.array([by_id[vocabulary[row]] for row in rows], np.float32)
    np.testing.assert_array_equal(found.vectors, expected)
    assert found.of_rows == 15 / 49
    assert found.of_occurrences == sum(counts[r] for r in rows) / sum(counts)
    assert "30.6% of the ids" in found.summary("film")

    # The same by row; and the same checksum, whatever the file's format and order.
    by_row = np.full((50, 4), np.nan)
    by_row[rows], by_row[0] = expected, 7.0
    np.save(tmp_path / "film.npy", by_row)
    again = read_pretrained(f"film={tmp_path}/film.npy", store, DIMS)["film"]
    np.testing.assert_array_equal(again.vectors, found.vectors)
    assert (again.rows.tolist(), again.checksum()) == (rows, found.checksum())
    by_row[rows[3], 1] += 0.001
    np.save(tmp_path / "film.npy", by_row)
    other = read_pretrained(f"film={tmp_path}/film.npy", store, DIMS)["film"]
    assert other.checksum() != found.checksum()


def test_text_ids_categories_and_arrays_of_one_width(small, tmp_path):
    frame = pl.DataFrame(
        {
            "id": pl.Series(["c", "zz", "a"], dtype=pl.Categorical),
            "vector": pl.Series([[3, 4], [9, 9], [1, 2]], dtype=pl.Array(pl.Float64, 2)),
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    np.save(tmp_path / "tag.npy", np.arange(9).reshape(3, 3))
    text = f"item={tmp_path}/a.parquet, tag={tmp_path}/tag.npy"
    found = read_pretrained(text, small, DIMS)
    assert found["item"].rows.tolist() == [1, 3]
    assert found["item"].vectors.tolist() == [[1, 2], [3, 4]]
    assert found["item"].of_occurrences == 12 / 18
    assert "note" not in found["item"].summary("item")
    assert found["tag"].vectors.tolist() == [[3, 4, 5], [6, 7, 8]]
    frame[:1].write_parquet(tmp_path / "a.parquet")
    assert "; note: " in read_pretrained(text, small, DIMS)["item"].summary("item")


def test_floats_are_the_text_of_whole_numbers(small, tmp_path, monkeypatch):
    vocabulary = small.vocabulary("item")._replace(ids=pl.Series([None, "7", "7.0", "8"]))
    monkeypatch.setattr(small, "vocabulary", lambda _: vocabulary)
    frame = pl.DataFrame({"id": [8.0, 7.0, 7.5], "vector": [[1, 2], [3, 4], [5, 6]]})
    frame.write_parquet(tmp_path / "a.parquet")
    found = read_pretrained(f"item={tmp_path}/a.parquet", small, DIMS)["item"]
    assert (found.rows.tolist(), found.vectors.tolist()) == ([1, 3], [[3, 4], [1, 2]])


GOOD = [[1.0, 2.0], [3.0, 4.0]]
REFUSED = {
    "other ids": ({"id": [4, 5], "vector": GOOD}, r"such as 4, 5 \(Int64\), the table .* 'a', 'b'"),
    "twice": ({"id": ["a", "a"], "vector": GOOD}, "rows 0 and 1 are both of id 'a'"),
    "no id": ({"id": ["a", None], "vector": GOOD}, "the id of row 1 is missing"),
    "width": ({"id": ["a"], "vector": [[1.0]]}, "have 1 numbers, .* D=2; set .*table_dims=item=1"),
    "widths": (
        {"id": ["a", "b", "c"], "vector": [[1.0, 2.0], [1.0], [1.0, 2.0]]},
        "row 1, of id 'b'",
    ),
    "NaN": ({"id": ["a", "b"], "vector": [[1.0, 2.0], [1.0, np.nan]]}, "row 1, of id 'b', has a"),
    "null": ({"id": ["a", "b"], "vector": [[1.0, None], [1.0, 2.0]]}, "row 0, of id 'a', has a"),
    "nothing": (
        {"id": ["a"], "vector": pl.Series([None], dtype=pl.List(pl.Float32))},
        "lack a vec",
    ),
    "columns": ({"item": ["a"], "emb": [[1.0, 2.0]]}, "columns item, emb; expected id and vector"),
    "texts": ({"id": ["a"], "vector": ["1 2"]}, "vector of String; expected .* lists of numbers"),
    "rows": (
        np.zeros((3, 2)),
        r"3 rows, but the table 'item' has 4, with row 0 .*vocab/item.parquet",
    ),
    "wide": (np.zeros((4, 3)), "have 3 numbers, .*'item' has the width D=2; .* PCA"),
    "infinite": (np.diag([1.0, 1.0, 1e300, 1.0])[:, 1:3], "vector of row 2 has a number"),
    "all NaN": (np.full((4, 2), np.nan), "all its rows but row 0 are NaN"),
    "flat": (np.zeros(8), r"an array \[8\] of float64; expected numbers"),
    "text": (np.full((4, 2), "x"), "of <U1; expected numbers"),
    "objects": (np.full((4, 2), None), "can't be read as .npy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_used_is_one_clear_error(small, tmp_path, name):
    content, message = REFUSED[name]
    if isinstance(content, dict):
        path = tmp_path / "vectors.parquet"
        pl.DataFrame(content).write_parquet(path)
    else:
        path = tmp_path / "vectors.npy"
        np.save(path, content)
    with pytest.raises(
        DinError, match=f"^config.model.pretrained: {re.escape(str(path))}: .*{message}"
    ):
        read_pretrained(f"item={path}", small, DIMS)


def test_what_names_no_file_is_refused(small, tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.parquet").touch()
    tables = "the tables of ids that the model reads are: item, tag"
    for text, message in {
        "itme=a.npy": f"has 'itme=a.npy': expected TABLE=FILE, .*{tables}",
        "item-bias=a.npy": tables,
        "item": "expected TABLE=FILE",
        "item=a.npy,item=b.npy": "has 'item=b.npy': .* once",
        "item=nowhere.npy": "nowhere.npy: no such file",
        f"item={tmp_path}/a.csv": "expected FILE.parquet, by id, or FILE.npy",
        f"item={tmp_path}/a.parquet": "can't be read as Parquet",
    }.items():
        with pytest.raises(DinError, match=message):
            read_pretrained(text, small, DIMS)
    assert read_pretrained("", small, DIMS) == {}
