"""The comparison of speed: same samples for all, rates of whole steps, ratios over the fastest."""

import json
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(PEERS.parent)
    monkeypatch.syspath_prepend(PEERS)
    import make_samples
    import samples
    import speed
    import timing

    return Namespace(make_samples=make_samples, samples=samples, speed=speed, timing=timing)


@pytest.fixture
def data(tmp_path, peers):
    return peers.speed.prepared(tmp_path / "data", 4, 400)


def test_samples_have_the_shape_of_amazon_electronics(data):
    store = Store(data[0])
    assert [len(store.split(split)) for split in SPLITS] == [400, 50, 50]
    assert {table.name: table.rows - 1 for table in store.schema.tables} == {
        "item": 63_001,
        "category": 801,
    }
    category = {}
    for name in ("fields", "events/history"):
        goods, theirs = (store.column(f"{name}/{of}").tolist() for of in ("item", "category"))
        for good, its in zip(goods, theirs, strict=True):
            assert category.setdefault(good, its) == its
    assert 700 < max(category.values()) <= 801
    start, end = (
        store.column(f"sequences/history.{side}").astype(int) for side in ("start", "end")
    )
    assert 3 < (end - start).mean() < 5
    assert set(Counter(store.column("samples/user").tolist()).values()) == {2}
    seen = Counter(store.column("fields/item")[store.split("train")].tolist())
    seen.update(store.column("events/history/item").tolist())
    counts = store.vocabulary("item").counts
    assert {row: counts[row] for row in np.flatnonzero(counts).tolist()} == seen


def test_long_histories_are_cut(tmp_path, peers, monkeypatch):
    monkeypatch.setattr(peers.make_samples, "longest", lambda mean: 7)
    peers.make_samples.make(tmp_path / "store", 30, 16)
    store = Store(tmp_path / "store")
    length = store.column("sequences/history.end").astype(int) - store.column(
        "sequences/history.start"
    )
    assert length.max() == 7


def test_samples_that_are_there_are_not_made_again(data, tmp_path, peers):
    before = [path.stat().st_mtime_ns for path in data]
    assert peers.speed.prepared(tmp_path / "data", 4, 400) == data
    assert [path.stat().st_mtime_ns for path in data] == before


def test_a_library_is_given_the_samples_of_the_store(data, peers):
    store, file = data
    read = peers.samples.Samples(file, [], 0)
    split = read.test
    for i, sample in enumerate(Store(store).split("test")):
        start, end = (
            int(Store(store).column(f"sequences/history.{side}")[sample])
            for side in ("start", "end")
        )
        assert split.inputs["length"][i] == end - start
        for name in ("item", "category"):
            assert split.inputs[name][i] == Store(store).column(f"fields/{name}")[sample] + 1
            behaviors = Store(store).column(f"events/history/{name}")[start:end] + 1
            held = split.inputs[f"hist_{name}"][i]
            assert held[: end - start].tolist() == behaviors.tolist()
            assert not held[end - start :].any()
    assert read.columns(8, dict_of("sparse"), dict_of("history"), extra=1) == [
        feature("item", 63_003, "item"),
        feature("category", 803, "category"),
        history("hist_item", 63_003, "item", read.max_history),
        history("hist_category", 803, "category", read.max_history),
    ]


def dict_of(kind):
    return lambda *given, **named: {"kind": kind, "given": given, **named}


def feature(name, rows, table):
    given = {"kind": "sparse", "given": (name, rows), "extra": 1}
    return given | {"embedding_dim": 8, "embedding_name": table}


def history(name, rows, table, longest):
    given = (feature(name, rows, table),)
    return {"kind": "history", "given": given, "maxlen": longest, "length_name": "length"}


def ticks_until_enough(clock, peers):
    for ticks in range(1000):
        try:
            clock.tick()
        except peers.timing.Enough:
            return ticks
    raise AssertionError("the clock never had enough")


def test_the_clock_leaves_out_the_warm_up_and_counts_whole_steps(peers):
    # Steps of 10 s, 5 s, then 1 s: the first two are warm-up; a third of 6 s has passed by then.
    # Ticks at 0, 10, 15 (where measuring begins), 16, …, 20; the one at 21 raises.
    times = iter([0, 10, 15, *range(16, 100)])
    clock = peers.timing.Clock(6, now=lambda: next(times))
    assert ticks_until_enough(clock, peers) == 8
    assert clock.rate(32) == 32.0


def test_the_clock_sees_at_least_three_steps(peers):
    times = iter(range(0, 1000, 100))
    clock = peers.timing.Clock(6, now=lambda: next(times))
    ticks_until_enough(clock, peers)
    assert (clock.steps, clock.rate(1000)) == (3, 10.0)


def test_batches_are_whole(peers):
    values = np.arange(1000)
    split = peers.samples.Split({"item": values}, values, values)
    whole = split.whole_batches(300)
    for of in (whole.inputs["item"], whole.label, whole.user):
        np.testing.assert_array_equal(of, values[:900])
    with pytest.raises(DinError, match="--batch 501: the file has 1000 training samples"):
        split.whole_batches(501)


def test_disturbed_runs_are_left_out_of_the_median_where_there_are_others(peers):
    def run(rate, others):  # values that are not numbers have no median
        figures = {"samples_per_s": rate, "peak_mb": 5, "flags": {"dim": 16}, "dense": False}
        return peers.speed.Run(figures, "", others)

    runs = [run(10.0, 0.1), run(1.0, 0.9), run(20.0, 0.25), run(2.0, 0.8)]
    assert peers.speed.summary(runs, 0.25) == ({"samples_per_s": 15.0, "peak_mb": 5}, False)
    assert peers.speed.summary(runs, 0.05) == ({"samples_per_s": 6.0, "peak_mb": 5}, True)


def test_ratios_are_over_the_peer_that_is_fastest_at_each(peers):
    figures = {
        "din_jax": {"samples_per_s": 90.0, "step_samples_per_s": 50.0, "infer_samples_per_s": 9.0},
        "one": {"samples_per_s": 30.0, "step_samples_per_s": 10.0},
        "other": {"samples_per_s": 10.0, "step_samples_per_s": 40.0},
    }
    assert peers.speed.ratios(figures) == {"train": 3.0, "step": 1.25, "infer": None}
    del figures["din_jax"]
    assert peers.speed.ratios(figures) == {"train": None, "step": None, "infer": None}


def test_the_table_marks_what_is_in_doubt(peers):
    shape = peers.speed.Shape(9, 16, 32)
    figures = {shape: {"din_jax": {"samples_per_s": 9000.0}, "one": {"samples_per_s": 2000.0}}}
    lines = peers.speed.table(["din_jax", "one", "two"], figures, {(shape, "one")}).splitlines()
    assert lines[0] == "| history | dim | batch | | din_jax | one | two | over the fastest peer |"
    assert lines[2] == "| 9 | 16 | 32 | train | 9,000 | 2,000* | failed | 4.50* |"
    assert lines[3] == "| 9 | 16 | 32 | step | failed | failed | failed |  |"
    assert lines[1].count("|") == lines[2].count("|") == lines[0].count("|")


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("import sys; sys.exit('error: no such thing')", "error: no such thing"),
        ("raise SystemExit(3)", "ended with status 3, without a word"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, out of memory perhaps"),
        ("print('done')", "its last line is not JSON"),
        ("print('[1]')", "its last line is not JSON"),
        ("pass", "its last line is not JSON"),
    ],
)
def test_a_run_that_fails_says_why(peers, program, failure):
    result = peers.speed.run([sys.executable, "-c", program])
    assert (result.figures, result.failure) == (None, failure)


@pytest.fixture
def stubs(tmp_path, peers, monkeypatch):
    """A stub of our benchmark and of two peers, and the flags that name the peers' environments.

    The stubs say at what rate they train: din_jax 60 samples a second at any batch, one 20, two
    fails at batches over 8.
    """
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def stub(name, reads, body):
        script = tmp_path / f"{name}.py"
        flags = [*reads, "--dim", "--batch", "--optimizer", "--activation", "--seconds"]
        lines = [
            "import argparse, json, os, sys",
            "flags = argparse.ArgumentParser()",
            *(f"flags.add_argument({flag!r}, required=True)" for flag in flags),
            "given = flags.parse_args()",
            f"assert os.path.exists(given.{reads[0].strip('-')})",
            "assert (given.optimizer, given.activation) == ('sgd', 'sigmoid')",
            body,
        ]
        script.write_text("\n".join(lines))
        return script

    def prints(rate):
        return f"print('hm'); print(json.dumps({{'samples_per_s': {rate}, 'peak_mb': 7}}))"

    ours = stub("ours", ["--store", "--max-history"], prints(60.0))
    one = stub("one", ["--samples"], prints(20.0))
    two = stub(
        "two", ["--samples"], f"int(given.batch) > 8 and sys.exit('too big'); {prints(30.0)}"
    )
    monkeypatch.setattr(peers.speed, "OURS", ours)
    monkeypatch.setattr(peers.speed, "PEERS", {"one": one, "two": two})
    return [f"one={tmp_path / 'venv'}", f"two={tmp_path / 'venv'}"]


def test_all_take_turns_and_a_failure_stops_no_other(tmp_path, peers, stubs, monkeypatch, capsys):
    flags = f"--dims 4 --batches 8,16 --history 3 --samples 64 --repeats 2 --data {tmp_path / 'd'}"
    flags += " --optimizer sgd --activation sigmoid --quiet 1000"
    monkeypatch.setattr("sys.argv", ["speed.py", *flags.split(), "--environments", *stubs])
    peers.speed.main()
    lines = capsys.readouterr().out.splitlines()
    small, large = "history 3, dim 4, batch 8", "history 3, dim 4, batch 16"
    runs = [line.partition(": ")[0] for line in lines if line.startswith("history")]
    assert runs == [f"{small}, {name}" for name in ("din_jax", "one", "two")] * 2 + [
        f"{large}, {name}" for name in ("din_jax", "one", "two", "din_jax", "one")
    ]
    assert "| 3 | 4 | 16 | train | 60 | 20 | failed | 3.00 |" in lines
    last = json.loads(lines[-1])
    nothing = {"step": None, "infer": None}
    assert last["ratio_over_fastest_peer"] == {
        small: {"train": 2.0, **nothing},
        large: {"train": 3.0, **nothing},
    }
    assert last["figures"][large] == {
        "din_jax": {"samples_per_s": 60.0, "peak_mb": 7},
        "one": {"samples_per_s": 20.0, "peak_mb": 7},
    }
    assert last["failed"] == {large: {"two": "too big"}}
    assert last["disturbed"] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--environments three=x",
            "--environments three=x: expected PEER=DIR, with a peer of: one",
        ),
        ("--environments one", "--environments one: expected PEER=DIR"),
        ("--environments one=x", "x is no virtual environment; make one with .*install.sh one DIR"),
        ("--environments {0} {0}", "names one twice"),
        ("--dims 16,x --environments {0}", "--dims 16,x: expected whole numbers"),
        ("--batches 0 --environments {0}", "--batches 0: expected whole numbers"),
        ("--repeats 0 --environments {0}", "--repeats 0: expected more than 0"),
        ("--samples 99 --batches 50 --environments {0}", "--samples 99: expected two batches, 100"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(peers, stubs, monkeypatch, flags, message):
    monkeypatch.setattr("sys.argv", ["speed.py", *flags.format(*stubs).split()])
    with pytest.raises(DinError, match=message):
        peers.speed.main()


def test_an_environment_without_the_library_is_reported(tmp_path, peers, stubs, monkeypatch):
    lacks = tmp_path / "lacks.py"
    lacks.write_text("import no_such_library")
    monkeypatch.setattr(peers.speed, "PEERS", {"one": lacks})
    with pytest.raises(DinError, match="No module named 'no_such_library'; make one with"):
        peers.speed.environments([stubs[0]])
