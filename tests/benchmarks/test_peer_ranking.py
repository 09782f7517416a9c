"""The ranking of other libraries: what is chosen on validation, what is scored, what they read."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.errors import DinError

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
LENGTHS = {"train": [3, 0, 1], "validation": [2, 2, 1, 3], "test": [1, 0, 3, 2]}
LABELS = {"train": [1, 0, 1], "validation": [1, 0, 1, 0], "test": [0, 1, 1, 0]}
SCORES = {  # of the labels of validation, by their AUC
    0.0: [0.1, 0.9, 0.2, 0.8],
    0.25: [0.1, 0.2, 0.7, 0.8],
    0.5: [0.1, 0.2, 0.9, 0.8],
    0.75: [0.5, 0.2, 0.9, 0.8],
    1.0: [0.7, 0.2, 0.9, 0.6],
    None: [np.nan, 0.2, 0.9, 0.6],
}
KIND = np.array([0, 1, 2, 3, 3, 2])  # of each item; 0 is padding


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    import fuxictr_files
    import ranking
    import samples

    return Namespace(files=fuxictr_files, ranking=ranking, samples=samples)


@pytest.fixture
def file(tmp_path):
    """A file of `export_samples.py` with goods, their kinds and an hour, one user per split."""
    history = Sequence(
        "seen", (BehaviorField("i", "item", "item"), BehaviorField("k", "k", "kind"))
    )
    schema = Schema(
        tables=(Table("item", 5), Table("k", 3), Table("hour", 4)),
        fields=(
            Field("hour", "hour", "context"),
            Field("item", "item", "ad"),
            Field("kind", "k", "ad"),
        ),
        sequences=(history,),
    )
    rng = np.random.default_rng(0)
    described = {"schema": schema.to_json(), "max_history": 3, "fingerprint": ""}
    arrays = {"described": np.array(json.dumps(described))}
    for split, lengths in LENGTHS.items():
        length = np.array(lengths, np.int32)
        items = rng.integers(1, 6, (len(length), 3)) * (np.arange(3) < length[:, None])
        ads = rng.integers(1, 6, len(length))
        arrays |= {
            f"{split}/label": np.array(LABELS[split]),
            f"{split}/user": np.zeros(len(length), int),
            f"{split}/fields/hour": rng.integers(1, 5, len(length)),
            f"{split}/fields/item": ads,
            f"{split}/fields/kind": KIND[ads],
            f"{split}/history/item": items,
            f"{split}/history/kind": KIND[items],
            f"{split}/length": length,
        }
    np.savez(tmp_path / "samples.npz", **arrays)
    return tmp_path / "samples.npz"


class Scripted:
    """A peer whose scores on validation have the AUCs of a script, and which keeps a log.

    Its weights are the number of epochs, which the log has when test is scored.
    """

    parameters = 7
    test = np.array([0.3, 0.6, 0.25, 0.2])

    def __init__(self, script):
        self.script, self.log = script, []

    def model(self, setting, seed):
        self.log.append((setting.learning_rate, seed))
        self.curve, self.epochs = self.script[setting.learning_rate], 0
        return self

    def fit(self, split):
        self.log.append(split)
        self.epochs += 1

    def plateau(self):
        self.log.append("plateau")

    def predict(self, split):
        if split == "validation":
            return np.array(SCORES[self.curve[self.epochs - 1]])
        self.log.append(f"test after {self.epochs}")
        return self.test

    def weights(self):
        return self.epochs

    def restore(self, weights):
        self.epochs = weights


@pytest.fixture
def run(peers, file, monkeypatch, capsys):
    """Runs `main` with a scripted peer, and returns the last line."""

    def run(peer, *flags, rates=(0.1, 0.2, 0.3)):
        monkeypatch.setattr(sys, "argv", ["peer.py", f"--samples={file}", *flags])
        settings = [peers.ranking.Setting(rate, 0.0, 0.0) for rate in rates]
        flags = peers.ranking.parser("Doc.\n", l2=0.5)
        peers.ranking.main(flags, settings, ("numpy",), lambda samples, arguments: peer)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_the_best_epoch_of_the_best_trial_is_scored_on_test_once(run):
    peer = Scripted({0.1: [0.5, 0.25], 0.2: [0.5, 0.75], 0.3: [0.75, 0.0]})
    result = run(peer, "--search", "--epochs=2")
    epochs = ["train", "train"]
    trials = [(0.1, 0), *epochs, "plateau", (0.2, 0), *epochs, (0.3, 0), *epochs, "plateau"]
    assert peer.log == [*trials, (0.2, 0), "test after 2"]
    assert result["chosen"] == {"learning_rate": 0.2, "dropout": 0.0, "l2": 0.0, "epochs": 2}
    assert [trial["validation"] for trial in result["trials"]] == list(peer.script.values())
    labels = LABELS["test"]
    assert result["user_weighted_auc"] == roc_auc_score(labels, peer.test)  # there is one user
    assert result["auc"] == pytest.approx(roc_auc_score(labels, peer.test))
    assert result["log_loss"] == pytest.approx(log_loss(labels, peer.test))
    assert result["samples"] == [3, 4, 4]
    assert (result["fit"], result["parameters"]) == ("train", 7)


def test_a_trial_ends_after_as_many_epochs_without_a_new_best_as_its_patience(run):
    curve = [0.25, 0.0, 0.5, 0.5, 0.25, 1.0]
    peer = Scripted({0.1: curve, 0.2: [0.25] * 6})
    result = run(peer, "--search", "--epochs=6", "--patience=2", rates=(0.1, 0.2))
    assert [trial["validation"] for trial in result["trials"]] == [curve[:5], [0.25] * 3]
    assert result["chosen"]["epochs"] == 3
    assert run(peer, "--lr=0.1", "--epochs=6")["chosen"]["epochs"] == 6


def test_refitting_repeats_the_chosen_epochs_on_both_splits_for_every_seed(run):
    peer = Scripted({0.1: [0.5, 0.25, 0.5, 0.75, 0.0]})
    result = run(peer, "--lr=0.1", "--refit", "--epochs=5", "--seed=4", "--seeds=2")
    # A rate that was lowered after an epoch is lowered after the same epoch.
    trial = ["train", "train", "plateau", "train", "plateau", "train", "train", "plateau"]
    again = ["both", "both", "plateau", "both", "plateau", "both", "test after 4"]
    assert peer.log == [(0.1, 4), *trial, (0.1, 4), *again, (0.1, 5), *again]
    assert result["fit"] == "train+validation"
    assert [of_seed["seed"] for of_seed in result["seeds"]] == [4, 5]


def test_only_the_first_trials_are_run(run):
    peer = Scripted({0.1: [0.25], 0.2: [0.5], 0.3: [1.0]})
    result = run(peer, "--search", "--trials=2", "--epochs=1")
    assert [trial["learning_rate"] for trial in result["trials"]] == [0.1, 0.2]
    assert result["chosen"]["learning_rate"] == 0.2


def test_a_trial_that_diverges_has_its_best_epoch_so_far(run):
    peer = Scripted({0.1: [0.5, None], 0.2: [None], 0.3: [0.25, 0.0]})
    result = run(peer, "--search", "--epochs=2")
    assert [trial["validation"] for trial in result["trials"]] == [[0.5], [], [0.25, 0.0]]
    assert result["chosen"]["learning_rate"] == 0.1
    with pytest.raises(SystemExit, match=r"error: every trial diverged; use a lower --lr"):
        run(peer, "--lr=0.2")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--epochs=0", "--epochs 0: expected at least 1"),
        ("--patience=-1", "--patience -1: expected at least 0"),
        ("--trials=0", "--trials 0: expected at least 1"),
        ("--seeds=3", "--seeds 3: only --refit trains with several seeds; add it"),
    ],
)
def test_a_flag_out_of_range_is_an_error(run, flag, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        run(Scripted({}), flag)


def test_fuxictr_reads_the_samples(tmp_path, peers, file):
    read = peers.samples.Samples(file, [], 0)
    names = ("train", "both", "test")
    peers.files.write(read, {name: read[name] for name in names}, tmp_path)
    arrays = np.load(file)
    goods = pl.read_parquet(tmp_path / "goods.parquet")
    assert goods["item_index"].to_list() == goods["item"].to_list() == list(range(6))
    for column in ("fields", "history"):
        for split in LENGTHS:
            items = arrays[f"{split}/{column}/item"].ravel()
            kinds = arrays[f"{split}/{column}/kind"].ravel()
            assert goods["kind"].to_numpy()[items].tolist() == kinds.tolist()
    for name in names:
        sources = ("train", "validation") if name == "both" else (name,)
        samples = pl.read_parquet(tmp_path / f"{name}.parquet")
        histories = pl.read_parquet(tmp_path / f"{name}-histories.parquet")
        joined = {
            column: np.concatenate([arrays[f"{source}/{column}"] for source in sources]).tolist()
            for column in ("label", "length", "fields/item", "fields/hour", "history/item")
        }
        assert samples.to_dict(as_series=False) == {
            "user_index": list(range(len(joined["label"]))),
            "seq_len": joined["length"],
            "item_index": joined["fields/item"],
            "hour": joined["fields/hour"],
            "label": joined["label"],
        }
        assert histories["full_item_seq"].to_list() == [
            row[:length]
            for row, length in zip(joined["history/item"], joined["length"], strict=True)
        ]
    described = json.loads((tmp_path / "features.json").read_text())
    fields = {name: spec for of in described["features"] for name, spec in of.items()}
    sizes = {name: spec["vocab_size"] for name, spec in fields.items() if "vocab_size" in spec}
    assert sizes == {"hour": 5, "item": 6, "kind": 4}
    from_goods = [name for name, spec in fields.items() if spec.get("source") == "item"]
    assert from_goods == ["item", "kind"]


def test_fuxictr_needs_one_value_per_good(tmp_path, peers, file):
    read = peers.samples.Samples(file, [], 0)
    read.test.inputs["hist_kind"][2, 0] += 1
    with pytest.raises(DinError, match="a good has two values of 'kind'"):
        peers.files.write(read, {"train": read.train, "test": read.test}, tmp_path)


def test_a_split_is_read_by_its_name(peers, file):
    read = peers.samples.Samples(file, [], 2)
    assert read["both"].label.tolist() == [*LABELS["train"][:2], *LABELS["validation"][:2]]
    assert read["test"] is read.test
    with pytest.raises(KeyError, match="schema"):
        read["schema"]
