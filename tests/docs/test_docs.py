"""The documents: their Python blocks run, and what their commands, text and links name exists."""

import ast
import dataclasses
import functools
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import polars as pl
import pytest
from runs import small_config

import din_jax
from din_jax.config import check, default_config
from din_jax.prepare import __main__ as prepare
from din_jax.serve.options import Options

ROOT = Path(__file__).parent.parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES += tuple(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").glob("*.md")))
LINKED = (*PAGES, "benchmarks/peers/README.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Block(NamedTuple):
    language: str  # of a fence; "" of an indented block
    text: str
    line: int  # of its first line, from 1 on


def text_of(page):
    return (ROOT / page).read_text()


@functools.cache
def blocks_of(page):
    """The fenced and the indented blocks of a page, in order."""
    blocks, language, part, begin = [], None, [], 0
    for number, line in enumerate([*text_of(page).splitlines(), ""], 1):
        if language is None and (fence := re.fullmatch(r"```(\w+)", line)):
            language, part, begin = fence[1], [], number + 1
        elif language == "" and not line.startswith("    "):
            blocks.append(Block("", "\n".join(part), begin))
            language = None
        elif language is None and line.startswith("    ") and part == [""]:
            language, part, begin = "", [line[4:]], number
        elif language and line == "```":
            blocks.append(Block(language, "\n".join(part), begin))
            language = None
        elif language is not None:
            part.append(line if language else line[4:])
        if language is None:
            part = [line]
    assert language is None, f"{page}: an open block"
    return tuple(blocks)


def prose_of(page):
    """A page without its blocks."""
    lines = text_of(page).splitlines()
    for block in blocks_of(page):
        end = block.line + block.text.count("\n") + 1
        lines[block.line - 1 : end - 1] = [""] * (end - block.line)
    return "\n".join(lines)


def code_spans(page):
    """The inline code of a page, each with single spaces."""
    prose = re.sub(r"```\w*", "", prose_of(page))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


# Python blocks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Each program runs for a moment: compiling it well would take longer."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def trained_run(planted_store, tmp_path_factory):
    """The folder of a run of the library page's own model file, trained for one step."""
    folder = tmp_path_factory.mktemp("trained")
    (block,) = [b for b in blocks_of("docs/library.md") if b.text.startswith("# my_model.py")]
    (folder / "my_model.py").write_text(block.text)
    config = small_config(
        planted_store,
        **{
            "data.fit": "train+validation",
            "data.max_history": 1,
            "eval.batch_size": 2048,
            "model.hidden": (8,),
            "model.module": str(folder / "my_model.py"),
            "model.name": "mine",
            "optimizer.name": "sgd",
            "train.batch_size": 10_000,
            "train.epochs": 1,
        },
    )
    din_jax.train(config, folder / "mine", test=False)
    return folder / "mine"


def store_with_prices(path):
    """A store with a table of numbers in buckets, as `prepare log` makes it."""
    schema = din_jax.Schema((din_jax.Table("price", 4),), (), ())
    with din_jax.StoreWriter(path, schema) as writer:
        for name in ("label", "user"):
            writer.append(f"samples/{name}", np.array([0, 1, 1], np.uint8))
        writer.vocabulary("price", pl.Series([-np.inf, 5.0, 10.0]), np.array([1, 1, 1]))
        writer.finish({"train": (0, 1), "validation": (1, 2), "test": (2, 3)}, {})


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks_of(page))]
)
def test_python_blocks_run(page, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    python = [block for block in blocks_of(page) if block.language == "python"]
    if any("runs/mine" in block.text for block in python):
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/mine").symlink_to(request.getfixturevalue("trained_run"))
    if any('Store("data/mine")' in block.text for block in python):
        store_with_prices("data/mine")
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    for block in python:
        code = compile("\n" * (block.line - 1) + block.text, page, "exec")
        if "from ray" in block.text:
            continue  # it serves until it is ended; tests/serve/test_ray_serve.py
        exec(code, module.__dict__)
        if "class Ranker" in block.text:
            assert len(re.findall(r"^.*\S.*$", block.text, re.M)) < 60
            assert module.loss < 0.1  # as the page says
        if "with c.unlocked()" in block.text:
            check(module.get_config())


# Commands ---------------------------------------------------------------------------------------

_PROGRAMS = ("python", "python3", "pip", "pytest", "ruff", "mypy", "pre-commit", "tensorboard", ".")
_REPORTS = ("baselines", "compare", "lines", "run", "search", "table3", "table4", "table5")


def commands_of(text):
    """The simple commands of a block, as lists of words without assignments before them."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            one, words = words[:end], words[end + 1 :]
            while one and re.match(r"[A-Z_]+=", one[0]):
                one = one[1:]
            if one:
                yield one


def is_command(text):
    first = re.sub(r"^([A-Z_]+=\S+ )+", "", text).split()[:1]
    return bool(first) and (first[0] in _PROGRAMS or first[0].startswith((".ci/", "benchmarks/")))


def all_commands():
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "bash" or (not block.language and is_command(block.text)):
                yield from ((page, command) for command in commands_of(block.text))
        for span in code_spans(page):
            if is_command(span) and " " in span:
                yield from ((page, command) for command in commands_of(span))


@functools.cache
def help_of_preparation(name):
    """What `python -m din_jax.prepare NAME --help` prints."""
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(sys, "argv", ["prepare", name, "--help"])
        patch.setattr(sys, "stdout", types.SimpleNamespace(write=printed.append, flush=int))
        with pytest.raises(SystemExit) as ended:
            prepare.main()
    assert ended.value.code == 0, f"no preparation {name!r}"
    return "".join(printed)


@functools.cache
def flags_of(path):
    """The flags that a script defines by absl or argparse, itself or in a file beside it."""
    text = (ROOT / path).read_text()
    flags = set(re.findall(r"DEFINE_\w+\(\s*\"([\w-]+)\"", text))
    flags |= set(re.findall(r"add_argument\(\s*\"--([\w-]+)\"", text))
    if "dataclasses.fields(Options)" in text:
        flags |= {field.name for field in dataclasses.fields(Options)}
    for other in re.findall(r"^from (\w+) import", text, re.M):
        beside = (ROOT / path).with_name(f"{other}.py")
        if beside.exists() and beside != ROOT / path:
            flags |= flags_of(str(beside.relative_to(ROOT)))
    return flags | {"help"}


def flat(config, prefix=""):
    for key, value in config.to_dict().items() if not isinstance(config, dict) else config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def set_keys(assignments):
    """A config with some keys set from text, checked; raises at an unknown key or value."""
    config = default_config()
    config.data.store, config.optimizer.decay_samples = "store", 1
    defaults = dict(flat(config))
    for key, text in assignments:
        assert key in defaults, f"no config key {key}"
        default = defaults[key]
        if text is None or "…" in text:
            continue
        if key == "devices":
            value = int(text) if text.isdecimal() else text
        elif isinstance(default, bool | int | float | tuple | None):
            try:
                value = ast.literal_eval(text)
            except ValueError:
                value = text
            value = float(value) if isinstance(default, float) else value
        else:
            value = text
        config.update_from_flattened_dict({key: value})
    check(config)


def check_flags(words, flags, files=()):
    """The words after a command's name: flags exist, config keys too, and files that they name."""
    keys = []
    for i, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        value = value if equals else next(iter(words[i + 1 : i + 2]), "")
        if name.startswith("config."):
            keys.append((name.removeprefix("config."), value))
        else:
            plain = name.removeprefix("no") if name.removeprefix("no") in flags else name
            assert plain in flags, f"no flag --{name}"
        if name in files and value != "…":
            file = value.partition(":")[0]
            assert not file.startswith("configs/") or (ROOT / file).is_file(), f"no {file}"
    set_keys(keys)


def check_command(words):
    program, *rest = words
    if program in (".", "tensorboard", "mypy", "ruff", "pre-commit"):
        return
    if program == "pip":
        extras = re.findall(r"\[(\w+)\]", " ".join(rest))
        assert set(extras) <= PROJECT["project"]["optional-dependencies"].keys()
    elif program == "pytest":
        paths = [w for w in rest if "/" in w]
        assert all((ROOT / path).exists() for path in paths)
        markers = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
        if "-m" in rest:
            assert any(m.startswith(rest[rest.index("-m") + 1]) for m in markers)
    elif program in ("python", "python3"):
        if rest[0] == "-m":
            module, rest = rest[1], rest[2:]
            if module == "venv":
                return
            file = f"{module.replace('.', '/')}/__main__.py"
            if not (ROOT / file).is_file():
                file = file.replace("/__main__.py", ".py")
            assert (ROOT / file).is_file(), f"no {module}"
            if rest[:1] == ["NAME"]:
                return
            if rest and module == "din_jax.prepare":
                flags = set(re.findall(r"--([\w-]+)", help_of_preparation(rest[0])))
            elif rest:
                assert module != "din_jax.report" or rest[0] in _REPORTS
                flags = flags_of(file)
            check_flags(rest, flags if rest else (), files=("config", "spec"))
        else:
            assert (ROOT / rest[0]).is_file(), f"no {rest[0]}"
            check_flags(rest[1:], flags_of(rest[0]), files=("config",))
    else:
        assert (ROOT / program).exists(), f"no {program}"


@pytest.mark.parametrize(
    ("page", "command"), [pytest.param(p, c, id=f"{p}: {' '.join(c)}") for p, c in all_commands()]
)
def test_commands_name_what_exists(page, command):
    check_command(command)


def test_the_commands_are_found():
    pages = [page for page, _ in all_commands()]
    assert pages.count("README.md") >= 7
    assert len(pages) > 60


# What the text names ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_config_keys_in_the_text_exist(page):
    config = default_config()
    sections = "|".join(key for key, value in config.items() if hasattr(value, "items"))
    known = {key for key, _ in flat(config)}
    known |= {key.rpartition(".")[0] for key in known}
    for span in code_spans(page):
        keys = re.findall(r"(?<![\w/.-])config\.([a-z][\w.]*\w)", span.replace("--", ""))
        if match := re.match(rf"((?:{sections})\.[a-z][\w.]*\w)", span):
            keys.append(match[1])
        for key in keys:
            is_file = key == "py" or key.endswith((".py", ".json", ".md"))
            assert is_file or key in known, f"{page}: `{span}`: no config key {key}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_in_the_text_exist(page):
    for span in code_spans(page):
        for path in re.findall(r"\b(?:din_jax|tests|benchmarks|configs|docs)/[\w/.-]*\w", span):
            assert (ROOT / path).exists(), f"{page}: `{span}`: no {path}"


@pytest.mark.parametrize("page", PAGES)
def test_tests_in_the_text_exist(page):
    for span in code_spans(page):
        if match := re.fullmatch(r"(tests/[\w/]+\.py)::(\w+)", span):
            assert f"def {match[2]}(" in text_of(match[1]), f"{page}: no {span}"


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_in_the_text_exist(page):
    for span in code_spans(page):
        if not (match := re.match(r"din_jax\.([\w.]+)", span)) or "…" in span:
            continue
        names = match[1].split(".")
        path = ROOT / "din_jax" / "/".join(names)
        is_module = path.is_dir() or path.with_suffix(".py").exists()
        in_module = path.parent.with_suffix(".py")
        if is_module or (len(names) == 1 and names[0] in dir(din_jax)):
            continue
        if page == "CHANGELOG.md" and "gone" in text_of(page):
            continue  # it names old modules
        assert in_module.exists(), f"{page}: `{span}`"
        assert re.search(rf"^(def|class) {names[-1]}\b", in_module.read_text(), re.M), span


def test_design_lists_every_file():
    (tree,) = [b.text for b in blocks_of("docs/design.md") if "din_jax/" in b.text.splitlines()]
    listed, rooms = set(), {}
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        rooms[len(indent)] = name
        if name.endswith(".py") and len(indent):
            folders = [rooms[i] for i in (0, 2) if i < len(indent)]
            listed.add("".join(folders) + name)
        elif name.endswith("/") and len(indent):
            listed.add(rooms[0] + name)
    files = {"din_jax/prepare/"}  # the page names its commands
    for path in (ROOT / "din_jax").rglob("*.py"):
        name = str(path.relative_to(ROOT))
        if not name.startswith("din_jax/prepare/"):
            files.add(re.sub(r"(?<=.)/__init__.py$", "/", name))
    assert listed == files - {"din_jax/"} | {"din_jax/__init__.py"}


def test_the_library_page_lists_every_public_name():
    section = text_of("docs/library.md").partition("\n## Public names")[2]
    names = []
    for row in re.findall(r"^\| (`.*?) \| .* \| (?:stable|provisional) \|$", section, re.M):
        names += re.findall(r"`(\w+)`", row)
    assert sorted(names) == [name for name in dir(din_jax) if name != "__version__"]


def test_the_configuration_page_lists_every_key():
    spans = set(code_spans("docs/configuration.md"))
    assert [key for key, _ in flat(default_config()) if key not in spans] == []


# Links ------------------------------------------------------------------------------------------


@functools.cache
def anchors_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    anchors = []
    for heading in re.findall(r"^#+ (.*)$", prose_of(page), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        anchors.append(slug if slug not in anchors else f"{slug}-{anchors.count(slug)}")
    return anchors


@pytest.mark.parametrize("page", LINKED)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors_of(str(file.resolve().relative_to(ROOT))), f"{page}: {target}"
