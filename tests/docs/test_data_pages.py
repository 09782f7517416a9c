"""The pages of the kinds of data: their files and specs give the reports that they show."""

import re
from pathlib import Path

import pytest

from din_jax.data.store import Store
from din_jax.prepare import log
from din_jax.prepare.log import spec_reader
from din_jax.prepare.log.report import report

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted(DOCS.glob("data-*.md"))


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def test_there_is_a_page_for_each_kind():
    assert [page.stem for page in PAGES] == [
        f"data-{kind}" for kind in ("impressions", "interactions", "ratings", "sessions")
    ]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_shows_what_its_spec_gives(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names = {}
    for block in blocks(text, "python"):
        exec(block, names)
    spec, *others = blocks(text, "toml")
    (path,) = re.findall(r"^Save it as `(.*)`:$", text, re.M)
    Path(path).write_text(spec)
    lines = list(report(log.prepare(path, "store")))
    shown = text.partition("A part of its report:\n")[2] or text.partition("this is a part:\n")[2]
    shown = re.findall(r"^    (.*)$", shown.partition("    python train.py")[0], re.M)
    assert len(shown) >= 5
    for line in shown:
        begin = line.removesuffix(" …")
        assert any(begin == x or (begin != line and x.startswith(begin)) for x in lines), line
    for other in others:
        Path(path).with_name("other.toml").write_text(other)
        if page.stem == "data-impressions":  # a new day
            origin = log.prepare(Path(path).with_name("other.toml"), "new", like="store")
            assert origin["samples"] == {"train": 0, "validation": 0, "test": 2000}
            assert Store("new").schema == Store("store").schema
        else:
            spec_reader.read(Path(path).with_name("other.toml"))
