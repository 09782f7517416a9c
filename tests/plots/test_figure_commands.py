import pytest
from runs import commands

from din_jax.errors import DinError
from din_jax.plots.figures import all_pictures, pictures


@pytest.mark.long
def test_all_figures_are_written_as_png_and_svg(softmax, tmp_path):
    pictures = dict(all_pictures(softmax))
    assert len(pictures) == 9
    for name, picture in pictures.items():
        png, svg = picture.save(tmp_path)
        assert png.read_bytes().startswith(b"\x89PNG")
        text = svg.read_text()
        assert picture.caption[:20] in text and picture.title in text  # text is text
        assert picture.caption[:20] not in picture.svg()
        assert name == picture.name and picture.data
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in pictures for kind in ("png", "svg")
    }
    first = (tmp_path / "reliability.svg").read_bytes()
    pictures["reliability"].save(tmp_path)  # in place of the file that is there
    assert (tmp_path / "reliability.svg").read_bytes() == first


@pytest.mark.long
def test_a_model_without_activation_unit_has_the_other_figures(base):
    for name in ("activation_weights", "interest_intensity"):
        with pytest.raises(DinError, match="no activation weights"):
            pictures[name](base)
    assert pictures["embeddings"](base).data


@pytest.mark.long
def test_the_command_writes_to_the_runs_folder_and_names_errors(log_folder, tmp_path):
    run, base = log_folder / "softmax", log_folder / "base"
    plots = ("-m", "din_jax.plots")
    one, curves, no_unit, missing, row = commands(
        (*plots, "score_distributions", "--workdir", run, "--split", "validation"),
        (*plots, "learning_curves", "--workdir", run, base, "--out", tmp_path / "curves"),
        (*plots, "activation_weights", "--workdir", base, "--out", tmp_path / "none"),
        (*plots, "reliability", "--workdir", tmp_path / "no"),
        (*plots, "activation_weights", "--workdir", run, "--row", "1e3"),
    )
    assert one.returncode == 0, one.stderr
    assert f"Predicted CTR by label: {run}/plots/score_distributions.png" in one.stdout
    assert (run / "plots" / "score_distributions.svg").exists()
    assert curves.returncode == 0, curves.stderr
    assert (tmp_path / "curves" / "learning_curves.svg").exists()
    assert no_unit.returncode == 1
    assert no_unit.stderr.startswith("error: ") and "no activation weights" in no_unit.stderr
    assert not (tmp_path / "none").exists()
    assert missing.returncode == 1 and missing.stderr.startswith("error: ")
    assert row.returncode == 2 and "invalid int value: '1e3'" in row.stderr
