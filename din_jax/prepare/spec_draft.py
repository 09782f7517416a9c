"""A first spec for `prepare log`, guessed from the columns of your files.

Each file is a table of the log: impressions or interactions, behaviours, items or users. Which one,
and which column is the user, the item, the time and the label, is guessed from names, and in a CSV
without a header from values, those of the first 10,000 rows. The result is TOML to edit, with
comments on what is left to decide. What stands beside a label may be caused by the click, so that
no such column becomes a field by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from din_jax.errors import DinError
from din_jax.prepare.column_guesses import Column, Table, is_function, read

_SPLIT = ["[split]", 'by = "time"', "validation = 0.1 # fractions of the rows", "test = 0.1"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags to a command line."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="the log's Parquet or CSV files")
    parser.add_argument("--out", help="the TOML file to write (default: print it)")


def run(arguments: argparse.Namespace) -> None:
    """Prints or writes the draft."""
    if arguments.out is None:
        print(draft(arguments.files), end="")
        return
    out = Path(arguments.out)
    if out.exists():
        raise DinError(f"{out} exists; delete it, or name another file with --out")
    out.write_text(draft(arguments.files, out.parent), encoding="utf-8")
    print(f"draft written to {out}; when it is edited: prepare log --spec {out} --out STORE")


def draft(files: Iterable[str | Path], folder: str | Path | None = None) -> str:
    """The TOML text of a first spec.

    Args:
      files: Parquet or CSV files.
      folder: where the spec's paths start from; None leaves them as they are given.

    Raises:
      DinError: a file can't be read.
    """
    tables = [read(Path(file)) for file in files]
    # The first with labels has the samples, or the first with users and items.
    order = ("impressions", "behaviours", "items", "users", "unknown")
    tables.sort(key=lambda table: order.index(table.kind))
    main = tables[0] if tables[0].kind in ("impressions", "behaviours") else None
    kinds = [table.kind for table in tables if table is not main]
    names = {"item", "user_id", "history"}
    lines = ["# A draft: check each line, and decide what the comments ask.", ""]
    if main is None:
        lines += ["# No file has a column like a user and one like an item: add [impressions].", ""]
    for table in tables:
        path = table.path if folder is None else Path(os.path.relpath(table.path, folder))
        lines += [*_section(table, path.as_posix(), kinds, main, names), ""]
    return "\n".join(lines + _SPLIT) + "\n"


def _section(
    table: Table, path: str, kinds: list[str], main: Table | None, names: set[str]
) -> list[str]:
    """The lines of a file's section. `kinds` are those of all files, `names` those of fields."""
    if table.kind == "unknown":
        return [f"# {path} has no column like a user or an item: {_list(table.columns)}"]
    if main and table is not main and _list(table.columns) == _list(main.columns):
        return [f'# {path} has the columns of the first table: name both, path = ["…", "…"]']
    kind = "impressions" if table is main else table.kind
    section = kind
    if kinds.count(kind) > 1:
        section += "." + _identifier(table.path.name.partition(".")[0], kind)
    lines = [f"[{section}]", f"path = {_text(path)}"]
    if table.delimiter:
        lines.append(f"delimiter = {_text(table.delimiter)}")
    if not table.has_header:
        key = "header" if kind in ("items", "users") else "columns"
        lines.append(f"{key} = {_list(table.columns)} # guessed: the file has no header")
    roles = table.roles
    if kind in ("items", "users"):
        return _side_table(table, section, lines, names)
    others = [c for c in table.columns if c.name not in roles.values()]
    if kind == "impressions" and "label" in roles:
        lines.append(f"label = {_text(roles['label'])}")
        if flags := [c for c in others if c.kind == "flag"]:
            lines.append(f"# also 0 and 1: {_list(flags)}")
    lines += [f"{role} = {_text(roles[role])}" for role in ("user", "item")]
    if "time" in roles:
        lines.append(f"time = {_text(roles['time'])}")
    elif kind == "behaviours":
        lines.append(
            "prior = true # no column is like a time: does all lie before all impressions?"
        )
    else:
        lines.append('# time = "…" # no column is like one; histories need it')
    if "rating" in roles:
        lines.append(f"# label = {{ column = {_text(roles['rating'])}, at_least = 4 }}")
    fields = [c for c in others if c.kind == "id"]
    if kind == "impressions" and "label" not in roles:
        item = next(c for c in table.columns if c.name == roles["item"])
        of_item = [
            c for c in fields if c.name.isidentifier() and c.name.isascii() and is_function(c, item)
        ]
        if of_item:
            lines.append(f"ad = {_list(of_item)} # each item has one")
            names |= {c.name for c in of_item}
            fields = [c for c in fields if c not in of_item]
    if kind == "impressions" and fields:
        lines.append(f"# known beforehand, for profile, ad or context? {_list(fields)}")
    if kind == "impressions" and (numbers := [c for c in others if c.kind == "number"]):
        lines.append(
            f'# numbers, for context = {{ NAME = {{ numeric = "log1p" }} }}: {_list(numbers)}'
        )
    if kind == "impressions" and "label" not in roles:
        lines += ["", "# No label: each row is a positive, and negatives are drawn.", "[negatives]"]
        lines += ["per_positive = 4", 'by = "popularity^0.75" # or "uniform", "in_category"']
    return lines


def _side_table(table: Table, section: str, lines: list[str], names: set[str]) -> list[str]:
    """The lines of a table of items or users, which begin with `lines`."""
    role = table.kind.removesuffix("s")
    key = next(c for c in table.columns if c.name == table.roles[role])
    lines.append(f"{role} = {_text(key.name)}")
    time = table.roles.get("time")
    if key.values.n_unique() < len(key.values):
        fix = f"valid_from = {_text(time)}" if time else "# write one row an id"
        lines.append(f"{fix} # some ids have several rows")
    else:
        lines.append("# valid at all times: is nothing in it from the future, such as counts?")
    fields, comments = [], []
    for column in table.columns:
        if column is key or (column.kind == "time" and lines[-1].startswith("valid_from")):
            continue
        name = _identifier(column.name, role)
        if name in names:
            name = f"{role}_{name}"
        names.add(name)
        options = f"column = {_text(column.name)}" if name != column.name else ""
        if column.separator:
            options += f"{', ' * bool(options)}separator = {_text(column.separator)}"
        line = f"{name} = {{{f' {options} ' * bool(options)}}}"
        if column.kind in ("id", "flag"):
            fields.append(line)
        elif column.kind == "number":
            comments.append(f'# {name} = {{ numeric = "log1p" }}')
        else:
            comments.append(f"# {line} # {column.kind}")
    if not fields:  # a side table without fields is an error
        return [f"# {lines[1]}: [{section}] without a column of ids", *comments]
    return [*lines, "", f"[{section}.columns]", *fields, *comments]


def _identifier(text: str, prefix: str) -> str:
    """Text as a name that TOML needs no quotes for."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    return name if name.isidentifier() else f"{prefix}_{name}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _list(columns: list[Column]) -> str:
    return f"[{', '.join(_text(c.name) for c in columns)}]"
