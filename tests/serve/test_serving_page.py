"""docs/serving.md: its requests and its client work, and it lists every flag, route and metric."""

import json
import re

import pytest
from runs import ROOT
from stubs import StubScorer, client, stub_server

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.serve.__main__ import parser

PAGE = (ROOT / "docs/serving.md").read_text()
# Those of the page's log.
IDS = {
    "user_id": [100778],
    "item": [916, 1096, 1210, 786, 479],
    "category": [f"category{i}" for i in (2, 6, 22, 25, 35)],
    "price": [35.3, 71.34, 18.97, 23.9],
    "tags": [f"tag{i}" for i in (1, 7, 10, 31, 39, 42)],
    "hour": [9],
}
OF_ADS = ("item", "category", "price", "tags")
SCHEMA = Schema(
    tuple(Table(name, len(ids) + 1) for name, ids in IDS.items()),
    (
        Field("user_id", "user_id", "user"),
        Field("hour", "hour", "context"),
        *(Field(name, name, "ad", multi_hot=name == "tags") for name in OF_ADS),
    ),
    (
        Sequence(
            "history",
            tuple(BehaviorField(n, n, ad=n, multi_hot=n == "tags") for n in OF_ADS),
            times=True,
        ),
    ),
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    scorer = StubScorer(schema=SCHEMA, vocabularies=IDS)
    with client(tmp_path_factory.mktemp("page"), scorer) as one:
        yield one


def test_the_answers_have_the_fields_that_the_page_shows(server):
    request, scored, ranked, found, problem = map(json.loads, blocks("json"))
    answer = server.post("/v1/score", json=request)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == scored.keys()
    assert answer.json()["unknown_ids"] == scored["unknown_ids"]
    assert server.post("/v1/rank", json=request).json().keys() == ranked.keys()
    answer = server.get("/v1/ids/item", params={"query": "916"}).json()
    assert answer.keys() == found.keys()
    assert answer["ids"] == [{**found["ids"][0], "title": None}]
    del request["candidates"][0]["item"]
    wrong = server.post("/v1/rank", json=request).json()
    assert wrong["error"].keys() == problem["error"].keys()


def test_the_client_works(server):
    (code,) = blocks("py")
    code = code.replace("http://127.0.0.1:8000", str(server.base_url))
    names = {}
    exec(code, names)
    with names["client"]:
        found = names["score"](json.loads(blocks("json")[0]))
    assert found == [1 / (1 + place) for place in (3, 4, 5)]


def test_the_page_lists_every_flag(server):
    table = PAGE.partition("\n## Flags")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `--")]
    listed = re.findall(r"`(--\w+)`", " ".join(rows))
    assert listed == [a.option_strings[0] for a in parser()._actions if a.dest != "help"]


def test_the_page_lists_every_route_and_metric(server, tmp_path):
    app = stub_server(tmp_path).app
    listed = set(re.findall(r"`(?:GET|POST) (/[^`]*)`", PAGE))
    names = re.compile(r"{(\w+)}")
    assert listed == {names.sub(lambda n: n[1].upper(), route.path) for route in app.routes}
    shown = set(re.findall(r"^# TYPE (\w+) ", server.get("/metrics").text, re.M))
    named = set(re.findall(r"`(din_jax_\w+)", PAGE))
    assert shown == named
