"""Reports: of trained runs, of models over several seeds, and of a store's simple baselines.

    python -m din_jax.report run --workdir …                  a trained run, as an HTML page
    python -m din_jax.report compare runs/a runs/b …          trained runs side by side, likewise

    python -m din_jax.report table3 --store …                 the paper's tables 3, 4 and 5
    python -m din_jax.report lines --config … --workdir …     the lines that a config file defines
    python -m din_jax.report compare --config … --workdir …   trains models and activations
    python -m din_jax.report baselines --store …              simple baselines, in seconds
    python -m din_jax.report search --config … --workdir …    hyper-parameters, on validation

Config keys are flags, as in train.py. The same command resumes: complete runs are not trained
again, and a run that was stopped is continued.
"""

from __future__ import annotations

import argparse
import json
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from din_jax import cli
from din_jax.baselines.evaluate import Baselines
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.report.compare import compare
from din_jax.report.experiments import Lines, compare_lines
from din_jax.report.markdown import (
    as_markdown,
    baselines_as_markdown,
    lines_as_markdown,
    search_as_markdown,
    table_as_markdown,
)
from din_jax.report.search_space import as_flags, default_space

TABLES = ("table3", "table4", "table5")
_TRAINED = (*TABLES, "lines", "compare", "search")
_REPORTS = (*_TRAINED, "baselines", "run")
_EXPECTED = (
    "expected `python -m din_jax.report run --workdir=…`, `compare RUN RUN …`, "
    "`table3 --store=…`, `table4`, `table5`, `lines --config=…`, `compare --config=…`, "
    "`search --config=…` or `baselines --store=…`"
)
_MOST_RUNS = 20  # side by side
# The reports that have a flag, for flags that not all reports have.
_REPORTS_WITH = {
    "models": ("compare",),
    "activations": ("compare",),
    "store": (*TABLES, "baselines", "run", "compare"),
    "protocol": TABLES,
    "line": (*TABLES, "lines"),
    "config": _TRAINED,
    "seeds": (*TABLES, "lines", "compare"),
    "trials": ("search",),
    "workdir": (*_TRAINED, "run"),
    "split": ("baselines", "run", "compare"),
    "checkpoint": ("run", "compare"),
    "out": ("run", "compare"),
    "max_history": ("baselines",),
}
_CONFIGS = Path(__file__).parents[2] / "configs"

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/.", lock_config=True
)
_MODELS = flags.DEFINE_list(
    "models", "base,din", "compare: the models to train; the others are compared with the first."
)
_ACTIVATIONS = flags.DEFINE_list(
    "activations", "dice", "compare: the activations that each model is trained with."
)
_STORE = flags.DEFINE_string(
    "store", None, "Tables and baselines: the store. Run and compare: where it is, if it has moved."
)
_PROTOCOL = flags.DEFINE_string(
    "protocol",
    "paper",
    "Tables: paper (the paper's hyper-parameters) or tuned (every line's hyper-parameters are "
    "searched on validation, with equal budgets).",
)
_LINE = flags.DEFINE_multi_string(
    "line",
    [],
    "Tables and lines: train only this line and the one that it is compared with; may be repeated.",
)
_SPLIT = flags.DEFINE_string("split", "test", "Baselines, run, compare: the split to score.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint",
    None,
    ["best", "last"],
    "Run and compare: which weights (default: those that training reported).",
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "Run and compare: the HTML file (default: report.html, or compare.html, in the run's folder).",
)
_MAX_HISTORY = flags.DEFINE_integer(
    "max_history",
    0,
    "Baselines: how many behaviours of a history to use, the most recent; 0: all.",
    lower_bound=0,
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=1)
_TRIALS = flags.DEFINE_integer(
    "trials", 40, "search: how many trials, with those of earlier calls.", lower_bound=1
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs and of the report.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of an error.")


def _lines(path: str, workdir: Path) -> dict[str, Any]:
    """Trains the `LINES` of a config file: again on train and validation if `REFIT` is true."""
    module = runpy.run_path(path)
    lines = module.get("LINES")
    if not lines:
        raise DinError(
            f"{path} defines no LINES: expected {{name: {{config key: value, or list of values to "
            "search}}, as in configs/regularizers.py"
        )
    against = next(iter(lines))
    lines = _select_lines(lines, against)
    refit = module.get("REFIT", False)
    return compare_lines(_CONFIG.value, lines, _SEEDS.value, workdir, against=against, refit=refit)


def _table(name: str, workdir: Path) -> tuple[dict[str, Any], str]:
    """Trains a table's lines; returns the result, and the result as Markdown."""
    module = runpy.run_path(str(_CONFIGS / f"{name}.py"))
    protocol, against, refit = _PROTOCOL.value, module["AGAINST"], module["REFIT"]
    origin = Store(_STORE.value).origin
    published: dict[str, dict[str, float]] = next(
        (
            results
            for facts, results in module["PUBLISHED"]
            if all(origin.get(key) == value for key, value in facts.items())
        ),
        {},
    )
    lines = _select_lines(module["PROTOCOLS"][protocol], against)
    result = compare_lines(
        _CONFIG.value, lines, _SEEDS.value, workdir, against=against, refit=refit
    )
    result |= {"table": name, "protocol": protocol, "store": origin, "published": published}
    text = f"{name}, protocol {protocol}, {_SEEDS.value} seed{'s' * (_SEEDS.value > 1)}, "
    text += f"RelaImpr against {against}\n\n"
    text += table_as_markdown(result, published)
    if not published:
        text += "\n\nThe paper's results are not shown, because they are for other data."
    return result, text


def _baselines() -> str:
    """Measures the simple baselines of a store; returns the result as Markdown."""
    baselines = Baselines(Store(_STORE.value), max_history=_MAX_HISTORY.value)
    metrics = baselines.cached_metrics(_SPLIT.value)
    samples, fitted = (len(baselines.store.split(name)) for name in (_SPLIT.value, "train"))
    return (
        f"simple baselines on {_SPLIT.value}, {samples:,} samples; fitted on train, {fitted:,} "
        f"samples, the logistic regression on {baselines.regression_samples:,} of them\n\n"
        + baselines_as_markdown(metrics)
    )


def _page(name: str, runs: list[str]) -> str:
    """Writes the page of a run, or of several side by side; returns what to print."""
    from din_jax.plots.figures import scored_run  # needs Matplotlib
    from din_jax.report import page, run_page, runs_page

    def load(workdir: str) -> Any:
        store = _STORE.value or ""
        return scored_run(workdir, _SPLIT.value, store=store, checkpoint=_CHECKPOINT.value)

    if name == "run":
        out = Path(_OUT.value or run_page.default_out(Path(_WORKDIR.value)))
        html, text = run_page.run_page(load(_WORKDIR.value)), ""
    else:
        scored = [load(workdir) for workdir in runs]
        html, text = runs_page.runs_page(scored)
        out = Path(_OUT.value or runs_page.default_out(scored[0].workdir))
    page.write(out, html)
    return f"{text}\nreport written to {out}".strip()


def _search(workdir: Path) -> tuple[dict[str, Any], str]:
    """Searches hyper-parameters; returns the result, and the result as Markdown."""
    try:
        from din_jax.report.search import search
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise DinError(
            "`search` needs Optuna, which is not installed: pip install 'din_jax[search]'"
        ) from error
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    given = config_flags.get_override_values(flags.FLAGS["config"])
    space = runpy.run_path(file).get("SEARCH", default_space(_CONFIG.value))
    if isinstance(space, dict):  # a flag sets its key for all trials
        space = {key: values for key, values in space.items() if key not in given}
    result = search(_CONFIG.value, space, _TRIALS.value, workdir)
    text = search_as_markdown(result)
    best = result["trials"][0]
    if best["state"] != "complete":
        return (
            result,
            f"{text}\n\nNo trial is complete: search smaller learning rates.",
        )
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    named = config.parse_known_args(sys.argv[1:])[0].config
    train = ["python train.py", "--config", shlex.quote(named), *as_flags(given | best["setting"])]
    text += "\n\nTo train the best, and to score the trial's own weights on test:\n\n"
    text += f"    {' '.join(train)} --workdir {shlex.quote(str(workdir / 'best'))}\n"
    text += f"    python eval.py --workdir {shlex.quote(str(workdir / 'trials' / best['trial']))}"
    return result | {"flags": given | best["setting"]}, text


def _select_lines(lines: Lines, against: str) -> Lines:
    """Selects the lines that the command line names, and the one that they are compared with.

    Raises:
      DinError: --line names an unknown line, or a flag sets a key that every line sets itself.
    """
    for name in _LINE.value:
        if name not in lines:
            raise DinError(f"--line={name}: the lines are: {', '.join(map(repr, lines))}")
    if _LINE.value:
        lines = {name: lines[name] for name in lines if name in (against, *_LINE.value)}
    for key in config_flags.get_override_values(flags.FLAGS["config"]):
        if all(key in keys for keys in lines.values()):
            raise DinError(
                f"--config.{key}: each of the lines sets it ({', '.join(lines)}), so that the flag "
                "would have no effect; leave it out"
            )
    return lines


def _check_flags(report: str) -> None:
    """Raises DinError for a flag that this report would ignore."""
    for flag, reports in _REPORTS_WITH.items():
        if flags.FLAGS[flag].present and report not in reports:
            raise DinError(f"--{flag} is no flag of `{report}`, but of {', '.join(reports)}")
    if report == "compare" and not flags.FLAGS["config"].present:
        for flag in ("models", "activations", "seeds", "workdir"):
            if flags.FLAGS[flag].present:
                raise DinError(f"--{flag}: trained runs are named alone: compare runs/a runs/b")
    elif report == "compare":
        for flag in ("split", "checkpoint", "out", "store"):
            if flags.FLAGS[flag].present:
                raise DinError(f"--{flag}: is for trained runs, compare runs/a runs/b")
        for key, flag in (("model.name", "models"), ("model.activation", "activations")):
            if key in config_flags.get_override_values(flags.FLAGS["config"]):
                raise DinError(f"--config.{key}: what is compared is named by --{flag}")


def _with_config_of_table(argv: list[str]) -> list[str]:
    """Adds --config, and --workdir if it is missing, to the command line of a table."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--store", "--workdir", "--config"):
        parser.add_argument(flag, default="")
    parser.add_argument("--protocol", default="paper")
    parser.add_argument("--config.data.store", dest="data", default="")
    known, others = parser.parse_known_args(argv[1:])
    name = next((a for a in others if a in TABLES), None)
    if name is None or not {"--help", "--helpfull", "--helpshort"}.isdisjoint(others):
        return argv
    if known.data:
        raise DinError("--config.data.store: a table's store is --store")
    if known.config:
        raise DinError(
            f"{name} has a config of its own, configs/{name}.py; set single keys by flags: "
            "--config.train.epochs=1"
        )
    if not known.store:
        raise DinError(f"{name} needs --store=…: the folder of a prepared store")
    if known.protocol not in ("paper", "tuned"):
        raise DinError(f"--protocol={known.protocol}: expected paper or tuned")
    file = _CONFIGS / f"{name}.py"
    if not file.is_file():
        raise DinError(f"no {file}: run from a checkout of the project, which has configs/")
    Store(known.store)  # raises its own error, before the config opens it
    sys.path.insert(0, str(_CONFIGS.parent))  # configs import each other
    added = [f"--config={file}:{known.protocol}:{known.store}"]
    if not known.workdir:
        added.append(f"--workdir=runs/{name}-{Path(known.store).name}-{known.protocol}")
    return [argv[0], *added, *argv[1:]]


def main() -> None:
    """Runs the report that the command line names."""
    if not sys.argv[1:]:
        raise DinError(f"which report? {_EXPECTED}")
    if not sys.argv[1].startswith("-") and sys.argv[1] not in _REPORTS:
        raise DinError(f"no report {sys.argv[1]!r}: {_EXPECTED}")
    argv = _with_config_of_table(sys.argv)
    report = next((a for a in argv[1:] if a in _REPORTS), "")
    of_runs = report == "compare" and not any(
        a.startswith(("--config=", "-config=")) or a in ("--config", "-config") for a in argv
    )
    required: tuple[str, ...] = ("config", "workdir")
    if of_runs:
        required = ()
    elif report in ("baselines", "run"):
        required = ("store",) if report == "baselines" else ("workdir",)
    name, *runs = cli.parse_flags(
        argv, required=required, positional=_MOST_RUNS if of_runs else 1
    ) or [""]
    if name not in _REPORTS:
        raise DinError(f"{f'no report {name!r}' if name else 'which report?'}: {_EXPECTED}")
    _check_flags(name)
    if name == "baselines":
        print(_baselines())
        return
    if name == "run" or of_runs:
        print(_page(name, runs))
        return
    workdir = Path(_WORKDIR.value)
    if name == "compare":
        result = compare(_CONFIG.value, _MODELS.value, _ACTIVATIONS.value, _SEEDS.value, workdir)
        text = as_markdown(result)
    elif name == "lines":
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        result = _lines(file, workdir)
        text = lines_as_markdown(result)
    elif name == "search":
        result, text = _search(workdir)
    else:
        result, text = _table(name, workdir)
    (workdir / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (workdir / f"{name}.md").write_text(text + "\n")
    print("\n" + text)


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
