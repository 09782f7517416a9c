"""The page at / of the server: its headers and files, its routes, and itself in a browser."""

import contextlib
import re
import shutil
import time
from datetime import date
from importlib import resources

import httpx
import numpy as np
import polars as pl
import pytest
from stubs import IDS, REQUEST, StubScorer, client, listening, stub_server

from din_jax.data.titles import Titles
from din_jax.data.transform import Transform
from din_jax.data.vocabularies import Fitted
from din_jax.serve import id_search
from din_jax.serve.id_search import IdSearch
from din_jax.serve.scorer import Scorer

FILES = {
    file.name: file.read_text()
    for file in resources.files("din_jax.serve").joinpath("page").iterdir()
}
TITLES = {"item": Titles(pl.Series(IDS["item"]), pl.Series(["Tent", None, *"ABCDEFGH"]))}
TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    scorer = StubScorer(titles=TITLES)
    with client(tmp_path_factory.mktemp("page"), scorer, token="s3cret") as one:
        yield one


# The files ----------------------------------------------------------------------------------------


def test_a_browser_is_told_to_keep_to_the_files_of_the_server(server):
    for path in ("/", *(f"/page/{name}" for name in FILES)):
        answer = server.get(path)
        assert answer.status_code == 200
        policy = dict(
            directive.strip().split(" ", 1)
            for directive in answer.headers["content-security-policy"].split(";")
        )
        assert policy.pop("default-src") == "'none'"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert {"script-src", "style-src", "base-uri", "form-action"} <= policy.keys()
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
    assert server.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert server.get("/page/page.js").headers["content-type"].startswith("text/javascript")
    for missing in ("nothing.js", "..%2Fapp.py", "%2e%2e%2fapp.py"):
        assert server.get(f"/page/{missing}", headers=TOKEN).status_code == 404


def test_the_page_has_nothing_inline_and_asks_no_other_address():
    html = FILES["index.html"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)
    assert re.findall(r"<script([^>]*)>(.*?)</script>", html, re.S) == [
        (' type="module" src="page/page.js"', "")
    ]
    for name, text in FILES.items():
        names = text.replace("http://www.w3.org/2000/svg", "")  # a name, which nobody asks
        assert not re.search(r"https?:|\bdata:|//\w+\.\w|\burl\(|@import", names), name
        assert not re.search(r"innerHTML|\beval\(|new Function|document\.write", text), name
    linked = re.findall(r'(?:src|href)="page/(.*?)"', html)
    linked += re.findall(r'from "\./(.*?)"', "".join(FILES.values()))
    assert {*linked, "index.html"} == FILES.keys()


# The routes ---------------------------------------------------------------------------------------


def test_the_example_of_the_inputs_can_be_scored(server):
    inputs = server.get("/v1/inputs", headers=TOKEN).json()
    assert inputs["example"] == REQUEST
    answer = server.post("/v1/score", json=inputs["example"], headers=TOKEN)
    assert answer.status_code == 200
    fields = {f["name"]: f for f in inputs["candidates"]}
    assert {n: (f["type"], f["multi_hot"], f["whole"]) for n, f in fields.items()} == {
        "item": ("id", False, True),
        "tags": ("id", True, False),
        "price": ("number", False, False),
    }
    assert [f["ad"] for f in inputs["behaviors"]["views"]["fields"]] == ["item", "tags", "price"]


def found(ids, titles, counts, query, limit):
    """What a search gives, by comparing all ids."""
    order = sorted(range(len(ids)), key=lambda i: (str(ids[i]) != query, -counts[i], i))
    contains = [
        i
        for i in order
        if query.lower() in str(ids[i]).lower() or query.lower() in (titles[i] or "").lower()
    ]
    return [{"id": ids[i], "title": titles[i]} for i in contains[:limit]]


@pytest.mark.parametrize("whole", [True, False])
def test_a_search_finds_what_comparing_all_ids_finds(whole, monkeypatch):
    monkeypatch.setattr(id_search, "_BLOCK", 16)
    rng = np.random.default_rng(0)
    ids = list(range(1, 301)) if whole else sorted(f"Item-{i}" for i in range(300))
    words = ["tent", "Sleeping bag", "TÉA", "a.*b", "lamp"]
    titles = [None if i % 7 == 0 else f"{rng.choice(words)} {i % 13}" for i in range(300)]
    counts = rng.integers(0, 9, 300)
    tables = {"item": Fitted(pl.Series(ids), counts, 0)}
    names = {"item": Titles(pl.Series(ids), pl.Series(titles))}
    search = IdSearch(Transform(None, tables, {}), names)
    queries = ["", "1", "12", "300", "tent", "TENT", "téa", ".*", "item-1", "bag 3", "nothing", "%"]
    for query in queries:
        for limit in (1, 5, 100):
            expected = found(ids, titles, counts.tolist(), query, limit)
            assert search.search("item", query, limit, time.monotonic() + 60) == expected, query
    with pytest.raises(TimeoutError):
        search.search("item", "nothing", 5, time.monotonic() - 1)


def test_titles_of_ids_and_whether_they_are_known(server):
    def ask(table, **query):
        return server.get(f"/v1/ids/{table}", params=query, headers=TOKEN).json()["ids"]

    assert ask("item", id=["99", "1", "2"]) == [
        {"id": "99", "title": None, "known": False},
        {"id": "1", "title": "Tent", "known": True},
        {"id": "2", "title": None, "known": True},
    ]
    assert ask("item", query="TEN") == [{"id": 1, "title": "Tent"}]
    assert ask("tag", query="re") == [{"id": t, "title": None} for t in ("green", "red")]
    assert len(ask("item", limit="3")) == 3


def test_values_are_written_as_javascript_reads_them():
    values = {"id": [2**53, -(2**60), 2**53 - 1, 1.5, True, None], "day": date(2024, 5, 1)}
    exact = [str(2**53), str(-(2**60)), 2**53 - 1, 1.5, True, None]
    assert id_search.raw(values) == {"id": exact, "day": "2024-05-01"}


def test_a_search_is_limited(server):
    def ask(table="item", headers=TOKEN, **query):
        answer = server.get(f"/v1/ids/{table}", params=query, headers=headers)
        return answer.status_code, answer.json()["error"]["field"]

    assert ask(headers={}) == (401, "Authorization")
    assert ask("nothing") == (404, None)
    assert ask(query="x" * 201) == (400, "query")
    assert ask(id=["1"] * 101) == (400, "id")
    for limit in ("0", "101", "-1", "x", "", "9" * 5000, "²"):
        assert ask(limit=limit) == (400, "limit")
    assert ask(headers={**TOKEN, "X-Timeout-Ms": "0.000001"}) == (504, None)


def test_more_searches_than_run_at_a_time_are_refused(tmp_path):
    server = stub_server(tmp_path)
    server._searches = 2
    with listening(server.app) as address:
        assert httpx.get(f"{address}/v1/ids/item").status_code == 503
        server._searches = 0
        assert httpx.get(f"{address}/v1/ids/item").status_code == 200


# In a browser -------------------------------------------------------------------------------------


class WeighingScorer(StubScorer):
    """The weights of a candidate are those of no other."""

    def score_encoded(self, requests):
        scored = super().score_encoded(requests)
        for result in scored:
            for weights in result.weights.values():
                c, t = weights.shape
                weights[:] = np.arange(1, c + 1)[:, None] * np.linspace(-0.5, 1, t)
        return scored


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        # A container's root has no sandbox; the only page is this one.
        one = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield one
        one.close()


@contextlib.contextmanager
def opened(browser, server):
    """The page of a server; its console and its requests are watched."""
    problems, hosts = [], set()
    refusal = r"status of 40[01] "  # the browser's own line for an answer of 400 or 401
    with listening(server.app) as address, browser.new_context() as context:
        one = context.new_page()
        one.on("console", lambda m: re.search(refusal, m.text) or problems.append(m.text))
        one.on("pageerror", lambda error: problems.append(str(error)))
        one.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        one.goto(address)
        yield one
    assert problems == []
    assert hosts == {address.split("/")[2]}


@pytest.fixture
def page(browser, tmp_path):
    """The page of a server with a token, before it is given."""
    server = stub_server(tmp_path, WeighingScorer(titles=TITLES), token="s3cret")
    with opened(browser, server) as one:
        yield one


def with_token(page):
    page.get_by_label("Token").fill("s3cret")
    page.keyboard.press("Enter")
    page.get_by_text("Activation weights for candidate 1").wait_for()
    return page


def bars(page):
    return page.eval_on_selector_all(
        ".weight .bar rect:nth-child(2)", "all => all.map(bar => bar.getAttribute('width'))"
    )


@pytest.mark.long
def test_the_page_asks_for_the_token(page):
    field = page.get_by_label("Token")
    field.wait_for()
    assert page.locator("main").is_hidden()
    field.fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("expected a valid bearer token").wait_for()
    with_token(page)
    assert field.is_hidden()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]


@pytest.mark.long
def test_another_candidate_changes_the_bars(page):
    with_token(page)
    first = bars(page)
    page.get_by_label("select candidate 3").focus()
    page.get_by_label("select candidate 1").focus()
    page.keyboard.press("ArrowDown")  # as a keyboard selects
    page.get_by_text("Activation weights for candidate 2").wait_for()
    second = bars(page)
    assert len(first) == len(second) == 2
    np.testing.assert_allclose(np.float64(second), 2 * np.float64(first), rtol=1e-6)
    assert page.locator(".weight .before").count() == 2
    assert page.get_by_role("status").inner_text().startswith("Candidate 2 (C):")
    assert [t.split("\n")[0] for t in page.locator(".output.rank").all_inner_texts()] == [
        "2",
        "4",
        "3",
        "1",
    ]


@pytest.mark.long
def test_the_page_is_used_by_keyboard(page):
    with_token(page)
    page.get_by_label("bid of candidate 2").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("90")
    page.locator("tr.first").get_by_label("select candidate 2").wait_for()
    assert '"bids": [1,90,1,1]' in page.get_by_label("JSON of the request").input_value()
    page.get_by_role("button", name="Remove candidate 1", exact=True).press("Enter")
    page.locator("tr.first").get_by_label("select candidate 1").wait_for()
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "Remove candidate 1"
    page.get_by_role("button", name="Add a behaviour").press("Enter")
    assert page.evaluate(focused) == "item of behaviour 3"
    page.keyboard.type("TEN")
    page.locator("datalist#ids-item option[label=Tent]").wait_for(state="attached")
    page.keyboard.press("Control+A")
    page.keyboard.type("1")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "tags of behaviour 3"
    page.locator("td", has=page.get_by_label("item of behaviour 3")).get_by_text("Tent").wait_for()


@pytest.mark.long
@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ({"type": "id"}, "a, b", "a, b"),
        ({"type": "id"}, None, ""),
        ({"type": "id", "whole": True}, 12, "12"),
        ({"type": "id", "whole": True}, "9007199254740993", "9007199254740993"),
        ({"type": "id"}, "12", "12"),
        ({"type": "number"}, -1.5, "-1.5"),
        ({"type": "id", "multi_hot": True}, ["red", "blue"], "red, blue"),
        ({"type": "id", "multi_hot": True}, ["a, b", "c"], '["a, b","c"]'),
        ({"type": "id", "multi_hot": True}, ["[x"], '["[x"]'),
        ({"type": "id", "multi_hot": True}, [], ""),
        (
            {"type": "id", "multi_hot": True, "weighted": True},
            [["a:b", 0.5], ["c", 2]],
            "a:b:0.5, c:2",
        ),
        ({"type": "number", "multi_hot": True}, [1, 2.5], "1, 2.5"),
    ],
)
def test_a_value_is_the_same_after_its_cell(page, field, value, text):
    code = """async ([value, field]) => {
        const {format, parse} = await import(new URL("page/values.js", document.baseURI));
        return [format(value, field), parse(format(value, field), field)];
    }"""
    assert page.evaluate(code, [value, field]) == [text, value]


@pytest.mark.long
def test_an_error_is_shown_beside_its_field(page):
    with_token(page)
    cell = page.get_by_label("price of candidate 2")
    cell.fill("dear")
    message = "candidates.price: 'dear'; expected a number or null"
    page.get_by_role("alert").get_by_text(message).first.wait_for()
    page.locator("#candidates .problem").get_by_text(message).wait_for()
    assert page.locator("[aria-invalid]").count() == 1
    assert cell.get_attribute("aria-invalid") == "true"
    cell.fill("3")
    page.get_by_text("Activation weights for candidate 1").wait_for()
    assert page.locator("[aria-invalid]").count() == 0
    assert page.get_by_role("alert").inner_text() == ""


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window(page, scheme):
    page.emulate_media(color_scheme=scheme)
    with_token(page)
    for width in (320, 360, 700, 720, 1000, 1200, 1340, 1350, 1440, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        inside = "all => all.every(one => one.scrollWidth <= one.clientWidth)"
        assert page.eval_on_selector_all(".rows, section", inside), width
        assert page.get_by_role("row").count() == 8  # with the headers, hidden or not


@pytest.mark.long
def test_a_screen_reader_finds_the_tables_and_a_name_for_each_input(page):
    with_token(page)
    for width in (360, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        for one, columns in (("behaviour", 4 + 3), ("candidate", 3 + 6)):
            table = page.get_by_role("table", name=one)
            assert table.get_by_role("columnheader").count() == columns
            assert table.get_by_role("rowheader").count() == (2 if one == "behaviour" else 4)
        names = page.eval_on_selector_all(
            "main :is(input, select, textarea, button)",
            "all => all.map(x => x.ariaLabel || x.closest('label')?.textContent || x.textContent)",
        )
        assert all(name.strip() for name in names)
    # Who hears the page is told what has changed.
    assert page.get_by_role("status").count() == page.get_by_role("alert").count() == 1


@pytest.mark.long
def test_the_page_shows_the_numbers_of_a_model(browser, artifact, tmp_path):
    scorer = Scorer(artifact, max_candidates=4, max_users=1, warm=False)
    request = scorer.artifact.probe["request"]
    weights = scorer.explain(**request)["history"]
    with opened(browser, stub_server(tmp_path, scorer)) as page:
        page.get_by_label("select candidate 2").check()
        page.get_by_text("Activation weights for candidate 2").wait_for()
        shown = {
            name: np.float64(page.locator(f".output.{name}").all_inner_texts())
            for name in ("probability", "weight")
        }
    np.testing.assert_allclose(shown["probability"], scorer.score(**request), atol=6e-5)
    np.testing.assert_allclose(shown["weight"], weights[1], rtol=5e-3, atol=6e-5)
    assert np.abs(weights[1] - weights[0]).max() > 0.01


@pytest.mark.long
def test_a_model_without_an_activation_unit_has_a_page_too(browser, tmp_path):
    scorer = StubScorer()
    scorer.artifact.manifest["activation_weights"] = []
    with opened(browser, stub_server(tmp_path, scorer)) as page:
        page.get_by_text("This model has no activation unit").wait_for()
        assert page.locator(".output.probability .bar").count() == 4
        assert page.locator(".output.weight").count() == 0
        assert page.get_by_label("Route").locator("option").count() == 2
