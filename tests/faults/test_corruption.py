"""After any damage to a file the figures are the same, or there is one clear error."""

import re

import jax
import numpy as np
import pytest
from damage import damaged, files_of, restore
from runs import commands, tiny_config
from untrained import prepare_log

from din_jax.checkpoint.checkpoints import KINDS, Checkpoints
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.export.exporting import export_run
from din_jax.serve.scorer import Scorer
from din_jax.training.loop import train
from din_jax.training.run import open_run
from din_jax.training.trained import evaluate


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a store, a run of two evaluations, and an exported model."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    folder.mkdir()
    prepare_log(folder, rows=400)
    train(config_of(folder), folder / "run", test=False)
    export_run(folder / "run", folder / "model", platforms=("cpu",))
    return folder


def config_of(folder, **keys):
    fast = {"model.name": "base", "model.attention.age": False, "train.evaluations_per_epoch": 2}
    return tiny_config(folder / "store", **fast | keys)


class Reader:
    """Reads a folder as the commands do, and gives its figures."""

    def __init__(self, whole, part):
        self.part, self.folder = part, {"evaluated": "run"}.get(part, part)
        self.names = {
            "store": [f for f in files_of(whole / "store") if not f.startswith("counts/")],
            "run": [f for f in files_of(whole / "run") if f.startswith("checkpoints/")],
            "model": files_of(whole / "model"),
        }[self.folder]
        self.run = open_run(config_of(whole))

    def figures(self, folder):
        if self.part == "model":
            scorer = Scorer(folder / "model", warm=False)
            scores = scorer.score(**scorer.artifact.probe["request"])
            return [scores, scorer.artifact.manifest["metrics"]]
        if self.part == "run":
            checkpoints, shapes = Checkpoints(folder / "run"), self.run.state_shapes()
            states = [checkpoints.restore(kind, shapes)[0] for kind in KINDS]
            return [np.asarray(leaf) for leaf in jax.tree.leaves(states)]
        if self.part == "evaluated":
            return evaluate(folder / "run", store=folder / "store").metrics
        store = Store(folder / "store")
        vocabularies = [store.vocabulary(table.name) for table in store.schema.tables]
        return [
            *(store.column(name).tolist() for name in sorted(store._columns)),
            *([*v.ids.to_list(), *v.counts.tolist()] for v in vocabularies),
            store.origin,
            [store.split(name) for name in ("train", "validation", "test")],
        ]


def sweep(whole, folder, part, count, seed):
    """Damages one part so many times; returns what was the same, and what was refused."""
    reader, rng = Reader(whole, part), np.random.default_rng(seed)
    restore(whole, folder)
    expected = reader.figures(folder)
    same, refused = [], []
    for _ in range(count):
        restore(whole / reader.folder, folder / reader.folder)
        damage = damaged(folder / reader.folder, reader.names, rng)
        try:
            found = reader.figures(folder)
        except DinError as error:
            refused.append((damage, str(error)))
            continue
        except Exception as error:
            raise AssertionError(f"{damage}: {type(error).__name__}") from error
        np.testing.assert_equal(found, expected, err_msg=f"{damage} changed a figure unnoticed")
        same.append(damage)
    assert [damage for damage, message in refused if str(folder) not in message] == []
    return same, refused


@pytest.mark.parametrize(("part", "count"), [("store", 40), ("model", 30), ("run", 20)])
def test_no_damage_changes_a_figure_unnoticed(whole, tmp_path, part, count):
    _, refused = sweep(whole, tmp_path / "f", part, count, seed=7)
    assert refused


def test_the_command_names_what_is_damaged(whole, tmp_path):
    restore(whole, tmp_path / "f")
    folders = [tmp_path / "f" / part for part in ("store", "run", "model")]
    files = ["samples/user.npy", "checkpoints/best/2/meta/metadata", "tables/item.npy"]
    for folder, file in zip(folders, files, strict=True):
        content = bytearray((folder / file).read_bytes())
        content[-1] ^= 1
        (folder / file).write_bytes(content)
    good, bad, none = commands(
        ["-m", "din_jax.verify", *(whole / part for part in ("store", "run", "model"))],
        ["-m", "din_jax.verify", *folders],
        ["-m", "din_jax.verify", tmp_path],
    )
    assert good.returncode == 0, good.stderr
    assert [line.partition(": ")[2].partition(",")[0] for line in good.stdout.splitlines()] == [
        "a store of 400 samples",
        "the last checkpoint of step 4",
        "the last checkpoint of step 2",
        "the best checkpoint of step 2",
        f"an exported model of {len(files_of(whole / 'model')) - 1} files",
    ]
    assert bad.returncode == none.returncode == 1
    assert "Traceback" not in bad.stderr
    for message in (
        r"samples/user.npy: its content has changed",
        r"checkpoints/best: the metadata of step 2",
        r"model is damaged: tables/item.npy has another checksum",
        rf"error: not found whole: {folders[0]}, {folders[1]}, {folders[2]}$",
    ):
        assert re.search(message, bad.stderr, re.MULTILINE), bad.stderr
    assert re.search("is no store .*, no run .* and no exported model", none.stderr)


@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "count"), [("store", 100), ("model", 70), ("run", 70), ("evaluated", 60)]
)
def test_no_damage_of_many_changes_a_figure_unnoticed(whole, tmp_path, part, count):
    _, refused = sweep(whole, tmp_path / "f", part, count, seed=20)
    assert refused
