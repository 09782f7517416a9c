"""`python -m din_jax`."""

import sys
from pathlib import Path

import pytest

from din_jax import __main__ as command

PACKAGE = Path(command.__file__).parent


def test_every_command_is_listed(monkeypatch, capsys):
    modules = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    modules |= {
        path.stem
        for path in PACKAGE.glob("*.py")
        if "__main__" in path.read_text() and path.stem != "__main__"
    }
    assert set(command.COMMANDS) == modules
    assert all((PACKAGE.parent / name).is_file() for name in command.SCRIPTS)
    monkeypatch.setattr(sys, "argv", ["din_jax"])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    for name in modules:
        assert sum(line.startswith(f"python -m din_jax.{name} ") for line in lines) == 1
    assert lines[1].startswith("python train.py ")


def test_a_command_runs_by_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["din_jax", "report", "raport"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: no report 'raport': expected ")


def test_an_unknown_command_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["din_jax", "trian"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert "error: no command 'trian'; expected prepare, " in capsys.readouterr().err
