"""Artifacts: damage, versions, and what is written of a run."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from runs import command
from untrained import prepare_log, random_run

from din_jax.data.files import json_checksum
from din_jax.data.store import Store
from din_jax.data.titles import write_titles
from din_jax.errors import DinError
from din_jax.export import artifact
from din_jax.export.exporting import export_run
from din_jax.serve.scorer import Scorer


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a log, its store, a run of Base and its artifact."""
    folder = tmp_path_factory.mktemp("artifact")
    prepare_log(folder, rows=400)
    items = Store(folder / "store").vocabulary("item").ids[1:]
    write_titles(folder / "store", "item", "Title of " + items)
    config = {"model.name": "base", "model.attention.age": False, "model.without": ("user",)}
    random_run(folder / "store", folder / "run", **config)
    done = command(
        *("-m", "din_jax.export", "--workdir", folder / "run", "--out", folder / "model"),
        *("--license", "cc0-1.0"),
    )
    assert done.returncode == 0, done.stderr
    assert "base of step 0" in done.stdout and "cpu, cuda, tpu" in done.stdout
    return folder


def copied(exported, tmp_path):
    return shutil.copytree(exported / "model", tmp_path / "model")


def rewritten(path, **changes):
    """Changes the manifest, and makes the checksums fit."""
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    for name in manifest["files"]:
        manifest["files"][name] = artifact._checksum(path / name)
    manifest["checksum"] = json_checksum(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_damage_of_any_file_is_named(exported, tmp_path):
    model = copied(exported, tmp_path)
    files = [str(f.relative_to(model)) for f in model.rglob("*") if f.is_file()]
    assert {"scoring.bin", "probe.json", "tables/item.npy", "transform/item.parquet"} < {*files}
    assert "titles/item.parquet" in files
    rng = np.random.default_rng(0)
    for name in sorted(files):
        whole = (model / name).read_bytes()
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        for damaged in (bytes(flipped), whole[: len(whole) // 2], None):
            if damaged is None:
                (model / name).unlink()
            else:
                (model / name).write_bytes(damaged)
            with pytest.raises(DinError, match=f"{re.escape(str(model))}.*{re.escape(name)}"):
                artifact.load(model)
        (model / name).write_bytes(whole)
    manifest = (model / "manifest.json").read_text()
    (model / "manifest.json").write_text(manifest.replace('"step": 0', '"step": 1'))
    with pytest.raises(DinError, match=r"manifest.json has another checksum than it says"):
        artifact.load(model)
    (model / "manifest.json").write_text(manifest)
    assert artifact.load(model).manifest["step"] == 0


def test_titles_come_with_the_model_and_older_artifacts_have_none(exported, tmp_path):
    model = copied(exported, tmp_path)
    titles = artifact.load(model).titles
    assert titles["item"].of_ids(["i3", "nothing"]) == ["Title of i3", None]
    assert titles["tags"].titles is None
    shutil.rmtree(model / "titles")
    manifest = json.loads((model / "manifest.json").read_text())
    del manifest["files"]["titles/item.parquet"]
    rewritten(model, files=manifest["files"])
    older = artifact.load(model).titles
    assert older["item"].of_ids(["i3"]) == [None]


def test_another_version_names_both(exported, tmp_path):
    model = copied(exported, tmp_path)
    rewritten(model, version=2)
    with pytest.raises(DinError, match="of version 2, this din_jax reads version 1"):
        artifact.load(model)
    rewritten(model, format="another")
    with pytest.raises(DinError, match="is no exported model"):
        artifact.load(model)
    with pytest.raises(DinError, match=r"no exported model.*python -m din_jax\.export"):
        artifact.load(tmp_path)


def test_files_outside_of_the_folder_are_not_read(exported, tmp_path):
    model = copied(exported, tmp_path)
    arrays = json.loads((model / "manifest.json").read_text())["arrays"]
    for outside in ("../secret", str(tmp_path / "secret")):
        rewritten(model, arrays=arrays | {outside: [1]})
        with pytest.raises(DinError, match="secret is outside of it"):
            artifact.load(model)


def test_a_function_that_cannot_be_read_is_built_from_the_config(exported, tmp_path):
    one = Scorer(exported / "model", warm=False)
    assert one.notes == []
    model = copied(exported, tmp_path)
    (model / "scoring.bin").write_bytes(b"of a newer JAX")
    rewritten(model, versions={"jax": "99.1"})
    other = Scorer(model, warm=False)  # the probe is compared
    (note,) = other.notes
    assert f"exported by jax 99.1, here is {jax.__version__}" in note
    assert "built from the model's config" in note

    probe = json.loads((model / "probe.json").read_text())
    probe["logits"][0] += 0.01
    (model / "probe.json").write_text(json.dumps(probe))
    rewritten(model)
    with pytest.raises(DinError, match=r"the probe's logits differ by 0\.01"):
        Scorer(model, warm=False)
    assert Scorer(model, warm=False, verify=False).programs == 0


def test_the_function_is_lowered_for_every_platform(exported):
    serialized = (exported / "model" / "scoring.bin").read_bytes()
    function = jax.export.deserialize(bytearray(serialized))
    assert function.platforms == ("cpu", "cuda", "tpu")
    assert "stablehlo" in function.mlir_module()
    assert len(serialized) < 100_000, "weights are not constants of it"


def test_the_card_has_what_a_reader_asks(exported):
    card = (exported / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: din_jax\n") and "license: cc0-1.0\n---" in card
    for text in ("train 240", "| item | ad | id |", "| price | ad | number |", "jax "):
        assert text in card, text
    example = re.search(r"^request = (.*)$", card, re.MULTILINE)[1]
    p = Scorer(exported / "model", warm=False).score(**json.loads(example))
    assert len(p) == 2 and np.isfinite(p).all()


def test_nothing_is_left_of_an_export_that_fails(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "_checksum", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_run(exported / "run", tmp_path / "model", platforms=("cpu",))
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(DinError, match="model exists already"):
        export_run(exported / "run", exported / "model")
    bad = command("-m", "din_jax.export", "--workdir", tmp_path, "--out", tmp_path / "m")
    assert bad.returncode == 1 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
