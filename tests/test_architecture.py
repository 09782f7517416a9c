"""A file imports only from files above it."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "din_jax"
# The house, top to bottom (docs/design.md). Modules on one line do not import one another.
LAYERS = [
    {"errors", "cpu"},
    {"devices", "processes"},
    {"config", "schema", "metrics", "cli"},
    {"store"},
    {"prepare"},
    {"pipeline"},
    {"counts"},
    {"embedding", "blocks"},
    {"layers"},
    {"models"},
    {"losses", "optim", "regularizers"},
    {"step"},
    {"checkpoint", "evaluation"},
    {"training"},
    {"experiments"},
    {"report"},
]


def modules_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "din_jax":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("din_jax."):
                    yield alias.name.split(".")[1]


def module_of(path):
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def test_every_file_has_its_place():
    found = {module_of(p) for p in PACKAGE.rglob("*.py")} - {"__init__"}
    assert found == set.union(*LAYERS)


def test_files_import_only_from_above():
    depth = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        (str(path.relative_to(PACKAGE)), imported)
        for path in PACKAGE.rglob("*.py")
        for imported in modules_imported(path)
        if module_of(path) != "__init__"
        and imported != module_of(path)
        and depth[imported] >= depth[module_of(path)]
    ]
    assert wrong == []


def test_the_commands_hold_flags_and_nothing_else():
    for name in ("train.py", "eval.py"):
        assert len((PACKAGE.parent / name).read_text().splitlines()) < 70
