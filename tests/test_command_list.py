"""`python -m din_jax`."""

import sys
from pathlib import Path

import pytest
from runs import command

from din_jax import __main__ as din_jax

PACKAGE = Path(din_jax.__file__).parent


def test_every_command_is_listed(monkeypatch, capsys):
    modules = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    modules |= {path.stem for path in PACKAGE.glob("*.py") if "\nif __name__" in path.read_text()}
    modules.remove("__main__")
    assert set(din_jax.COMMANDS) == modules
    assert all((PACKAGE.parent / name).is_file() for name in din_jax.SCRIPTS)
    monkeypatch.setattr(sys, "argv", ["din_jax"])
    din_jax.main()
    lines = capsys.readouterr().out.splitlines()
    for name in modules:
        assert sum(line.startswith(f"python -m din_jax.{name} ") for line in lines) == 1
    assert lines[1].startswith("python train.py ")


def test_a_command_runs_by_its_name():
    done = command("-m", "din_jax", "report", "raport")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no report 'raport': expected ")


def test_an_unknown_command_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["din_jax", "trian"])
    with pytest.raises(SystemExit) as ended:
        din_jax.main()
    assert ended.value.code == 1
    assert "error: no command 'trian'; expected prepare, " in capsys.readouterr().err
