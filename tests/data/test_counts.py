import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from weighted_stores import with_rows_repeated, with_weights

from din_jax.data import counts
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter

SCHEMA = Schema(
    (Table("item", 6), Table("hour", 3)),
    (Field("item", "item", "ad"), Field("second", "item", "ad"), Field("hour", "hour", "context")),
    (Sequence("history", (BehaviorField("item", "item", ad="item"),)),),
)


def brute_force(samples, rows, max_history):
    """n_j by Eq. 4: each sample's ids as a set. A sample is (ids of fields, history)."""
    n = np.zeros(rows, np.int64)
    for fields, history in samples:
        for j in {*fields, *(history[-max_history:] if max_history else history)}:
            n[j] += 1
    return n


@st.composite
def users(draw):
    """Users' events, and samples (start, end, item, second) that point into them."""
    events, samples = [], []
    ids = st.integers(0, 5)
    for _ in range(draw(st.integers(1, 4))):
        begin = len(events)
        events += draw(st.lists(ids, max_size=8))
        for _ in range(draw(st.integers(0, 5))):
            end = draw(st.integers(begin, len(events)))
            samples.append((begin, end, draw(ids), draw(ids)))
    # Sometimes a history that leaves the user's first events out.
    if samples and draw(st.booleans()):
        begin, end, item, second = samples.pop()
        samples.append((draw(st.integers(begin, end)), end, item, second))
    return events, samples


def write(path, events, samples):
    table = np.array(samples, np.int64).reshape(-1, 4)
    with StoreWriter(path, SCHEMA) as writer:
        n = len(table)
        writer.append("samples/label", np.zeros(n, np.uint8))
        writer.append("samples/user", np.zeros(n, np.uint8))
        writer.append("fields/item", table[:, 2])
        writer.append("fields/second", table[:, 3])
        writer.append("fields/hour", np.arange(n) % 3)
        writer.append("sequences/history.start", table[:, 0])
        writer.append("sequences/history.end", table[:, 1])
        writer.append("events/history/item", np.array(events, np.int64))
        writer.vocabulary("item", pl.Series(list("abcde")), np.zeros(5, np.int64))
        writer.vocabulary("hour", pl.Series([1, 2]), np.zeros(2, np.int64))
        train = n - n // 4
        writer.finish({"train": (0, train), "validation": (train, n), "test": (n, n)}, {})
    return Store(path), train


@settings(max_examples=60, deadline=None)
@given(users(), st.sampled_from([0, 1, 2, 5]))
def test_counts_equal_brute_force(tmp_path_factory, data, max_history):
    events, samples = data
    store, train = write(tmp_path_factory.mktemp("s") / "store", events, samples)
    for split, stop in (("train", train), ("train+validation", len(samples))):
        n = counts.sample_counts(store, split, max_history=max_history)
        as_sets = [((item, second), events[start:end]) for start, end, item, second in samples]
        expected = brute_force(as_sets[:stop], 6, max_history)
        assert n["item"].tolist() == expected.tolist()
        assert n["hour"].tolist() == np.bincount(np.arange(stop) % 3, minlength=3).tolist()


@settings(max_examples=25, deadline=None)
@given(users(), st.sampled_from([0, 2]), st.booleans(), st.integers(0, 2**32 - 1))
def test_weights_count_like_repeated_samples(tmp_path_factory, data, max_history, slow, seed):
    events, samples = data
    store, _ = write(tmp_path_factory.mktemp("s") / "store", events, samples)
    times = np.random.default_rng(seed).integers(0, 4, len(samples))
    with pytest.MonkeyPatch.context() as patch:
        if slow:
            patch.setattr(counts._Windows, "apart", lambda _: False)
        n, repeated, fractions = (
            counts.sample_counts(other, "train", max_history=max_history)
            for other in (
                with_weights(store, times),
                with_rows_repeated(store, times),
                with_weights(store, times / np.float32(3)),
            )
        )
    assert n["item"].dtype == np.float64 and repeated["item"].dtype == np.int64
    for table in ("item", "hour"):
        assert n[table].tolist() == repeated[table].tolist()
        np.testing.assert_allclose(fractions[table], n[table] / 3, rtol=1e-6)
        assert ((fractions[table] > 0) == (n[table] > 0)).all()


def test_weights_of_several_lookups_count_once(rich, monkeypatch):
    """A film's weight is that of the samples with it, as ad or in either history."""
    monkeypatch.setattr(counts, "_SAMPLES_AT_ONCE", 7)
    store, samples = rich
    weights = np.random.default_rng(0).random(90).astype(np.float32)
    n = counts.sample_counts(with_weights(store, weights), "validation")["film"]
    expected = np.zeros(50)
    for sample, weight in zip(samples[60:75], weights[60:75].tolist(), strict=True):
        histories = sample["views"] + sample["likes"]
        for film in {sample["film"], *(event["film"] for event in histories)}:
            expected[film] += weight
    np.testing.assert_allclose(n, expected, rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    users(),
    st.sampled_from([0, 2]),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_counts_follow_the_filter(tmp_path_factory, data, max_history, frequent, unknown, slow):
    """Rare visited ids are not looked up, or with `unknown` every rare id is 0."""
    events, samples = data
    store, train = write(tmp_path_factory.mktemp("s") / "store", events, samples)
    patch = pytest.MonkeyPatch()
    if slow:
        patch.setattr(counts._Windows, "apart", lambda _: False)
    with patch.context():
        n = counts.sample_counts(
            store,
            "train",
            max_history=max_history,
            frequent={"item": np.array(frequent)},
            unknown=unknown,
        )
    patch.undo()
    as_sets = []
    for start, end, item, second in samples[:train]:
        history = events[start:end][-max_history:] if max_history else events[start:end]
        fields = (item, second)
        if unknown:
            fields = tuple(j if frequent[j] else 0 for j in fields)
            history = [j if frequent[j] else 0 for j in history]
        else:
            history = [j for j in history if frequent[j]]
        as_sets.append((fields, history))
    assert n["item"].tolist() == brute_force(as_sets, 6, 0).tolist()
    assert n["hour"].sum() == train


def test_counts_are_cached_in_the_store_and_a_damaged_file_is_written_again(tmp_path, monkeypatch):
    store, _ = write(tmp_path / "store", [1, 2, 3, 1], [(0, 3, 1, 2), (0, 4, 3, 3)] * 3)
    first = counts.cached_counts(store, "train")
    assert first["item"].tolist() == counts.sample_counts(store, "train")["item"].tolist()
    (file,) = (tmp_path / "store" / "counts").iterdir()

    calls = []
    sample_counts = counts.sample_counts
    monkeypatch.setattr(
        counts, "sample_counts", lambda *a, **k: calls.append(1) or sample_counts(*a, **k)
    )

    def again(*arguments, **options):
        cached = counts.cached_counts(*arguments, **options)
        return {name: n.tolist() for name, n in cached.items()}

    expected = {name: n.tolist() for name, n in first.items()}
    assert again(store, "train") == expected and not calls
    assert again(store, "train", max_history=1) != expected and len(calls) == 1
    assert again(store, "train+validation") != expected and len(calls) == 2
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), b"", content[:50]):
        file.write_bytes(damaged)
        assert again(store, "train") == expected
    assert len(calls) == 5 and again(store, "train") == expected and len(calls) == 5
    assert not list((tmp_path / "store" / "counts").glob("*partial*"))


@pytest.mark.parametrize("max_history", [0, 3])
@pytest.mark.parametrize("at_once", [7, 1000])
def test_multi_hot_fields_and_several_sequences_count_once(rich, max_history, at_once, monkeypatch):
    monkeypatch.setattr(counts, "_SAMPLES_AT_ONCE", at_once)
    store, samples = rich
    n = counts.sample_counts(store, "train", max_history=max_history)

    def recent(sample, name):
        return sample[name][-max_history:] if max_history else sample[name]

    films = [
        ((s["film"],), [e["film"] for name in ("views", "likes") for e in recent(s, name)])
        for s in samples[:60]
    ]
    genres = [
        (s["genres"], [g for e in recent(s, "views") for g in e["genres"]]) for s in samples[:60]
    ]
    assert n["film"].tolist() == brute_force(films, 50, 0).tolist()
    assert n["genre"].tolist() == brute_force(genres, 8, 0).tolist()
    assert set(n) == {"film", "genre", "age", "hour"}


def test_optional_fields_count_only_as_inputs(planted_store):
    store = Store(planted_store)
    assert "user" not in counts.sample_counts(store, "train")
    n = counts.sample_counts(store, "train", extra_fields=["user_id"])
    assert n["user"].tolist() == [0] + [20] * 300


def test_counting_by_windows_and_by_brute_force_agree(planted_store, monkeypatch):
    store = Store(planted_store)
    fast = counts.sample_counts(store, "train", max_history=20)
    monkeypatch.setattr(counts._Windows, "apart", lambda _: False)
    slow = counts.sample_counts(store, "train", max_history=20)
    assert fast.keys() == slow.keys()
    for table, n in fast.items():
        assert n.tolist() == slow[table].tolist()
