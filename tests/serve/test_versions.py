"""The newest sound version serves; others are refused once, or kept to go back to."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from stubs import StubScorer

from din_jax.errors import DinError
from din_jax.export import artifact as artifacts
from din_jax.serve.scorer import Scorer, _computes_alike
from din_jax.serve.versions import Versions


class Folder:
    """Versions of stubs in a folder; the file `bad` makes one unsound."""

    def __init__(self, path):
        self.path, self.loads, self.events = path, [], []
        path.mkdir()

    def add(self, name, *, bad=False):
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text("{}")
        if bad:
            (folder / "bad").write_text("")
        else:
            (folder / "bad").unlink(missing_ok=True)
        return folder

    def load(self, folder, current):
        self.loads.append(folder.name)
        if (folder / "bad").exists():
            raise DinError("damaged")
        return StubScorer(folder.name)

    def versions(self, path=None):
        return Versions(path or self.path, self.load, lambda *event: self.events.append(event))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "models")


def polled(versions):
    """Whether two looks have found a version: at the first one it may still be written."""
    assert not versions.poll()
    return versions.poll()


def test_the_newest_by_natural_order_serves(folder):
    for name in ("v9", "v10", "v2", ".v11.partial-3"):
        folder.add(name)
    (folder.path / "notes.txt").write_text("")
    versions = folder.versions()
    assert versions.current.name == "v10"
    assert versions.previous is None
    assert folder.loads == ["v10"]
    assert not polled(versions)
    folder.add("v9.5")
    assert not polled(versions)
    assert folder.loads == ["v10"]


def test_a_newer_version_is_loaded_and_the_one_before_it_kept(folder):
    folder.add("v1")
    versions = folder.versions()
    began_with = versions.current
    folder.add("v2")
    assert polled(versions)
    assert (versions.current.name, versions.previous) == ("v2", began_with)
    assert folder.events == [("loaded", "v1"), ("loaded", "v2")]


def test_a_version_is_not_loaded_while_it_is_written(folder):
    folder.add("v1")
    versions = folder.versions()
    for i in range(3):
        (folder.add("v2") / f"table{i}").write_text("")
        assert not versions.poll()
    assert folder.loads == ["v1"]
    assert versions.poll()


def test_a_bad_version_is_refused_once_until_it_changes(folder, caplog):
    folder.add("v1")
    versions = folder.versions()
    folder.add("v2", bad=True)
    for _ in range(4):
        assert not versions.poll()
    assert versions.current.name == "v1"
    assert folder.loads == ["v1", "v2"]
    assert folder.events[1:] == [("refused", "v2")]
    assert "refused version v2: damaged" in caplog.text
    folder.add("v2")
    assert polled(versions)
    assert versions.current.name == "v2"


def test_a_bad_newest_version_does_not_hide_a_newer_sound_one(folder):
    folder.add("v1")
    versions = folder.versions()
    folder.add("v3", bad=True)
    folder.add("v2")
    assert polled(versions)
    assert versions.current.name == "v2"
    assert folder.loads == ["v1", "v3", "v2"]


def test_at_the_start_the_newest_sound_one_serves(folder):
    folder.add("v1")
    folder.add("v2", bad=True)
    assert folder.versions().current.name == "v1"


def test_without_a_sound_version_there_is_an_error(folder):
    with pytest.raises(DinError, match=r"models is no exported model, and has none in it; make"):
        folder.versions()
    folder.add("v1", bad=True)
    with pytest.raises(DinError, match="damaged"):
        folder.versions()
    with pytest.raises(DinError, match="missing is no exported model"):
        folder.versions(folder.path / "missing")


def test_a_rollback_goes_back_once_and_its_version_is_not_loaded_again(folder):
    folder.add("v1")
    versions = folder.versions()
    with pytest.raises(DinError, match="no previous version"):
        versions.rollback()
    folder.add("v2")
    assert polled(versions)
    with pytest.raises(DinError, match="version v2 serves, not v1"):
        versions.rollback("v1")
    begin = time.monotonic()
    assert versions.rollback("v2").name == "v1"
    assert time.monotonic() - begin < 1
    with pytest.raises(DinError, match="no previous version"):
        versions.rollback()
    assert not polled(versions)
    assert versions.current.name == "v1"
    folder.add("v3")
    assert polled(versions)
    assert (versions.current.name, versions.previous.name) == ("v3", "v1")
    assert [e for e, _ in folder.events] == ["loaded", "loaded", "rolled_back", "loaded"]


def test_a_link_to_another_artifact_is_a_new_version(folder):
    link = folder.path / "model"
    link.symlink_to(folder.add("v1"))
    versions = folder.versions(link)
    assert not polled(versions)
    other = folder.path / "next"
    other.symlink_to(folder.add("v2"))
    other.rename(link)
    assert polled(versions)
    assert len(folder.loads) == 2


def test_a_thread_watches(folder):
    folder.add("v1")
    versions = folder.versions()
    versions.watch(0.002)
    folder.add("v2")
    end = time.monotonic() + 20
    while versions.current.name == "v1" and time.monotonic() < end:
        time.sleep(0.002)
    versions.close()
    assert versions.current.name == "v2"


def test_other_inputs_are_noted(folder, caplog):
    folder.add("v1")
    versions = folder.versions()
    load = folder.load

    def renamed(path, current):
        scorer = load(path, current)
        scorer.encoder.user_fields = {"years": scorer.encoder.user_fields["age"]}
        return scorer

    versions._load = renamed
    folder.add("v2")
    assert polled(versions)
    assert "requests need other fields than before: user.years" in caplog.text
    assert "requests may no longer have: user.age" in caplog.text


# With a model ------------------------------------------------------------------------------------


def quick(folder, current):
    return Scorer(folder, max_candidates=4, max_users=1, warm=False, like=current)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def with_doubled_tables(model, path, probe):
    """A model with tables of twice the values."""
    tables = {name: 2 * np.asarray(table) for name, table in model.weights["tables"].items()}
    artifacts.write(
        path,
        model.manifest,
        weights={**model.weights, "tables": tables},
        transform=model.transform,
        function=(model.path / "scoring.bin").read_bytes(),
        probe=probe,
        card="",
    )


def test_a_version_that_differs_in_values_alone_compiles_nothing(artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "v1")
    versions = Versions(tmp_path, quick)
    old = versions.current.scorer
    assert old.programs == 1
    model, request = old.artifact, old.artifact.probe["request"]
    with_doubled_tables(model, tmp_path / ".v2", model.probe)
    alone = Scorer(tmp_path / ".v2", max_candidates=4, max_users=1, warm=False, verify=False)
    expected = alone.score(**request)
    logits = (np.log(expected) - np.log1p(-expected)).tolist()
    with_doubled_tables(model, tmp_path / "v2", {**model.probe, "logits": logits})
    assert polled(versions)
    new = versions.current.scorer
    np.testing.assert_array_equal(new.score(**request), expected)
    assert np.abs(old.score(**request) - expected).max() > 1e-6
    assert new.programs == 1
    assert new._compiled is old._compiled
    new.artifact.manifest["arrays"]["tables/item"][0] += 1
    assert not _computes_alike(old, new)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tables/item.npy", truncate),
        ("tables/item.npy", flip_a_bit),
        ("transform/item.parquet", flip_a_bit),
        ("scoring.bin", flip_a_bit),
        ("manifest.json", truncate),
        ("manifest.json", os.unlink),
        ("probe.json", os.unlink),
    ],
)
def test_a_damaged_model_is_refused_and_the_old_one_goes_on(artifact, tmp_path, name, damage):
    shutil.copytree(artifact, tmp_path / "v1")
    events = []
    versions = Versions(tmp_path, quick, lambda *event: events.append(event))
    request = versions.current.scorer.artifact.probe["request"]
    before = versions.current.scorer.score(**request)
    shutil.copytree(artifact, tmp_path / "v2")
    damage(tmp_path / "v2" / name)
    assert not polled(versions)
    assert events == [("loaded", "v1"), ("refused", "v2")]
    np.testing.assert_array_equal(versions.current.scorer.score(**request), before)


def test_a_killed_export_leaves_no_version(artifact, tmp_path):
    """`export` is killed after each file that it writes."""
    shutil.copytree(artifact, tmp_path / "v1")
    code = f"""
import os, pathlib, signal
from din_jax.export import artifact
model = artifact.load({str(artifact)!r})
sync, left = artifact._sync, {{}}
def killed(path):
    if path.name == "probe.json":
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
artifact._sync = killed
artifact.write({str(tmp_path / "v2")!r}, model.manifest, weights=model.weights,
    transform=model.transform, function=b"", probe=model.probe, card="")
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (left,) = [p.name for p in tmp_path.iterdir() if p.name != "v1"]
    assert left.startswith(".v2.partial")
    versions = Versions(tmp_path, quick)
    assert versions.current.name == "v1"
    assert not polled(versions)
