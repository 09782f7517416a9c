"""Data flows down one list of packages: a file imports only from its own package and from above."""

import ast
import graphlib
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "din_jax"
# Top to bottom (docs/design.md). Those on one line do not import one another.
LAYERS = [
    {"errors", "metrics", "intervals"},
    {"distributed"},
    {"config", "cli"},
    {"data"},
    {"prepare", "nn", "baselines"},
    {"models"},
    {"optim"},
    {"step"},
    {"checkpoint"},
    {"training"},
    {"plots", "predict", "export", "replay"},
    {"report"},
    {"serve", "verify"},
    {"__main__"},
]
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(path):
    """The modules of the package that a file imports, by their full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "din_jax":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("din_jax."))


def package_of(module):
    return module.split(".")[1]


def test_every_package_has_its_place():
    found = {package_of(module) for module in FILES if module != "din_jax"}
    assert found == set.union(*LAYERS)


def test_files_import_only_from_their_package_and_from_above():
    depth = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        (module, other)
        for module, path in FILES.items()
        if module != "din_jax"
        for other in imported(path)
        if other != "din_jax" and package_of(other) != package_of(module)
        if depth[package_of(other)] >= depth[package_of(module)]
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    graph = {module: set(imported(path)) - {module} for module, path in FILES.items()}
    del graph["din_jax"]  # it names what the others define
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_file_is_longer_than_a_reader_likes():
    long = {module: n for module, p in FILES.items() if (n := p.read_text().count("\n")) > 420}
    assert long == {}


def test_the_commands_hold_flags_and_nothing_else():
    for name in ("train.py", "eval.py"):
        assert len((PACKAGE.parent / name).read_text().splitlines()) < 70
