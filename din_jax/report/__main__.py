"""Compares trained models over seeds, and makes the paper's tables.

    python -m din_jax.report table3 --store …                 the paper's tables 3, 4 and 5
    python -m din_jax.report lines --config … --workdir …     the lines that a config file defines
    python -m din_jax.report compare --config … --workdir …   models and activations

Config keys are flags as they are of train.py. Runs that are complete are not trained again, one
that was stopped goes on: the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from din_jax import cli
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.report.compare import compare
from din_jax.report.experiments import Lines, compare_lines
from din_jax.report.markdown import as_markdown, lines_as_markdown, table_as_markdown

TABLES = ("table3", "table4", "table5")
_REPORTS = (*TABLES, "lines", "compare")
_EXPECTED = (
    "expected `python -m din_jax.report table3 --store=…`, `table4`, `table5`, `lines --config=…` "
    "or `compare --config=…`"
)


_REPORTS_WITH = {  # a flag that not all reports have
    "models": ("compare",),
    "activations": ("compare",),
    "store": TABLES,
    "protocol": TABLES,
    "line": (*TABLES, "lines"),
}


_CONFIGS = Path(__file__).parents[2] / "configs"
_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/.", lock_config=True
)


_MODELS = flags.DEFINE_list("models", "base,din", "What to train; the first is compared with.")
_ACTIVATIONS = flags.DEFINE_list("activations", "dice", "Each model with each of these.")
_STORE = flags.DEFINE_string("store", None, "Of a table: the store to train and test on.")
_PROTOCOL = flags.DEFINE_string(
    "protocol",
    "paper",
    "Of a table: paper (the paper's lines and training, fixed) or tuned (every line searched on "
    "validation with one budget).",
)


_LINE = flags.DEFINE_multi_string(
    "line", [], "Of tables and lines: only this line and the one compared with; may be repeated."
)


_SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs and of the report.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")


def _lines_of(path: str) -> dict[str, dict[str, Any]]:
    """The `LINES` of a config file."""
    lines = runpy.run_path(path).get("LINES")
    if not lines:
        raise DinError(
            f"{path} defines no LINES: expected {{name: {{config key: value, or list of values to "
            "search}}, as configs/regularizers.py has them"
        )
    return lines


def _table(name: str, workdir: Path) -> tuple[dict[str, Any], str]:
    """Trains a table's lines: (what was found, the same as Markdown)."""
    module = runpy.run_path(str(_CONFIGS / f"{name}.py"))
    protocol, against, refit = _PROTOCOL.value, module["AGAINST"], module["REFIT"]
    origin = Store(_STORE.value).origin
    published: dict[str, dict[str, float]] = next(
        (
            figures
            for facts, figures in module["PUBLISHED"]
            if all(origin.get(key) == value for key, value in facts.items())
        ),
        {},
    )
    lines = _chosen(module["PROTOCOLS"][protocol], against)
    result = compare_lines(
        _CONFIG.value, lines, _SEEDS.value, workdir, against=against, refit=refit
    )
    result |= {"table": name, "protocol": protocol, "store": origin, "published": published}
    text = f"{name}, protocol {protocol}, {_SEEDS.value} seed{'s' * (_SEEDS.value > 1)}, "
    text += f"RelaImpr against {against}\n\n"
    text += table_as_markdown(result, published)
    if not published:
        text += "\n\nThe data is not the paper's, so that its figures do not stand here."
    return result, text


def _chosen(lines: Lines, against: str) -> Lines:
    """The lines that the command line asks for, and the one compared with.

    Raises:
      DinError: it names an unknown one, or sets a key that each of them sets.
    """
    for name in _LINE.value:
        if name not in lines:
            raise DinError(f"--line={name}: the lines are: {', '.join(map(repr, lines))}")
    if _LINE.value:
        lines = {name: lines[name] for name in lines if name in (against, *_LINE.value)}
    for key in config_flags.get_override_values(flags.FLAGS["config"]):
        if all(key in keys for keys in lines.values()):
            raise DinError(
                f"--config.{key}: each of the lines sets it ({', '.join(lines)}), so that it would "
                "change nothing; leave it out"
            )
    return lines


def _check_flags(report: str) -> None:
    """Raises DinError at a flag that this report would pass over."""
    for flag, reports in _REPORTS_WITH.items():
        if flags.FLAGS[flag].present and report not in reports:
            raise DinError(f"--{flag} is no flag of `{report}`, but of {', '.join(reports)}")
    if report == "compare":
        for key, flag in (("model.name", "models"), ("model.activation", "activations")):
            if key in config_flags.get_override_values(flags.FLAGS["config"]):
                raise DinError(f"--config.{key}: what is compared is named by --{flag}")


def _with_config_of_table(argv: list[str]) -> list[str]:
    """The command line of a table, which names a store, as one that names a config."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--store", "--workdir", "--config"):
        parser.add_argument(flag, default="")
    parser.add_argument("--protocol", default="paper")
    parser.add_argument("--config.data.store", dest="data", default="")
    given, rest = parser.parse_known_args(argv[1:])
    name = next((a for a in rest if a in TABLES), None)
    if name is None or not {"--help", "--helpfull", "--helpshort"}.isdisjoint(rest):
        return argv
    if given.data:
        raise DinError("--config.data.store: a table's store is --store")
    if given.config:
        raise DinError(
            f"{name} has a config of its own, configs/{name}.py; single keys are flags: "
            "--config.train.epochs=1"
        )
    if not given.store:
        raise DinError(f"{name} needs --store=…: the folder of a prepared store")
    if given.protocol not in ("paper", "tuned"):
        raise DinError(f"--protocol={given.protocol}: expected paper or tuned")
    file = _CONFIGS / f"{name}.py"
    if not file.is_file():
        raise DinError(f"no {file}: run from a checkout of the project, which has configs/")
    Store(given.store)  # now, for its own error
    sys.path.insert(0, str(_CONFIGS.parent))  # configs import one another
    added = [f"--config={file}:{given.protocol}:{given.store}"]
    if not given.workdir:
        added.append(f"--workdir=runs/{name}-{Path(given.store).name}-{given.protocol}")
    return [argv[0], *added, *argv[1:]]


def main() -> None:
    """Runs the report that the command line names."""
    if not sys.argv[1:]:
        raise DinError(f"which report? {_EXPECTED}")
    if not sys.argv[1].startswith("-") and sys.argv[1] not in _REPORTS:
        raise DinError(f"no report {sys.argv[1]!r}: {_EXPECTED}")
    argv = _with_config_of_table(sys.argv)
    (name,) = cli.parse_flags(argv, required=("config", "workdir"), positional=1) or [""]
    if name not in _REPORTS:
        raise DinError(f"{f'no report {name!r}' if name else 'which report?'}: {_EXPECTED}")
    _check_flags(name)
    workdir = Path(_WORKDIR.value)
    if name == "compare":
        result = compare(_CONFIG.value, _MODELS.value, _ACTIVATIONS.value, _SEEDS.value, workdir)
        text = as_markdown(result)
    elif name == "lines":
        defined = _lines_of(config_flags.get_config_filename(flags.FLAGS["config"]))
        lines = _chosen(defined, next(iter(defined)))
        result = compare_lines(_CONFIG.value, lines, _SEEDS.value, workdir)
        text = lines_as_markdown(result)
    else:
        result, text = _table(name, workdir)
    (workdir / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (workdir / f"{name}.md").write_text(text + "\n")
    print("\n" + text)


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
