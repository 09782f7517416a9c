"""Whatever is sent, by the OpenAPI document or not, is answered by 200 or 4xx."""

import json
from collections import Counter

import httpx
import pytest
from hypothesis import given, settings, strategies as st
from stubs import REQUEST, StubScorer, client, listening, stub_server

from din_jax.serve.openapi import document
from din_jax.serve.scorer import Scorer

ROUTES = ("/v1/score", "/v1/rank", "/v1/explain")


def values(schema):
    """A strategy for the values that a JSON schema allows."""
    if "anyOf" in schema:
        return st.one_of(*map(values, schema["anyOf"]))
    if isinstance(schema["type"], list):
        return st.one_of(*(values({**schema, "type": kind}) for kind in schema["type"]))
    least, most = schema.get("minItems", 0), schema.get("exclusiveMaximum")
    least_number = schema.get("minimum", schema.get("exclusiveMinimum"))
    match schema["type"]:
        case "object":
            every = {name: values(s) for name, s in schema["properties"].items()}
            required = {name: every.pop(name) for name in schema["required"]}
            return st.fixed_dictionaries(required, optional=every)
        case "array":
            return st.lists(values(schema["items"]), min_size=least, max_size=least + 1)
        case "number":
            return st.integers() | st.floats(
                least_number,
                most,
                allow_nan=False,
                allow_infinity=False,
                exclude_min="exclusiveMinimum" in schema,
                exclude_max=most is not None,
            )
        case "integer":
            return st.integers() | st.integers(0, 12)
        case "string":
            return st.text() | st.sampled_from(["red", "3", "old"])
        case "null":
            return st.none()
    raise AssertionError(schema)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=5), one, max_size=3),
    max_leaves=6,
)


@st.composite
def requests(draw, schema):
    """A request by the schema, of which a part may be anything else."""
    request = draw(values(schema))
    if draw(st.booleans()):
        place = request
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0]))
            if draw(st.booleans()):
                place[key] = draw(ANYTHING)
                break
            place = place[key]
    return request


def bodies(scorer):
    """A strategy for (route, a body of it)."""
    paths = document("stub", "v1", scorer)["paths"]
    of_routes = []
    for route in ROUTES:
        content = paths[route]["post"]["requestBody"]["content"]["application/json"]
        of_routes.append(st.tuples(st.just(route), requests(content["schema"])))
    return st.one_of(*of_routes)


def check(server, scorer, examples):
    """Sends requests, and returns how often each status came."""
    seen = Counter()

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(bodies(scorer))
    def send(case):
        route, body = case
        content = json.dumps(body)
        headers = {"Content-Type": "application/json"}
        answer = server.post(route, content=content, headers=headers)
        assert answer.status_code in (200, 400), (content, answer.text)
        assert ("error" in answer.json()) == (answer.status_code == 400)
        seen[answer.status_code] += 1

    send()
    return seen


def test_what_is_sent_by_the_document_is_no_error_of_the_server(tmp_path):
    with client(tmp_path) as server:
        seen = check(server, StubScorer(), 30)
    assert min(seen[200], seen[400]) > 3


@pytest.mark.long
def test_a_thousand_requests_to_a_model(artifact, tmp_path):
    scorer = Scorer(artifact, max_candidates=4, max_users=1)
    app = stub_server(tmp_path, scorer).app
    with listening(app) as address, httpx.Client(base_url=address, timeout=30) as server:
        seen = check(server, scorer, 1000)
    assert min(seen[200], seen[400]) > 100


@pytest.mark.long
def test_a_thousand_requests_with_every_kind_of_input(tmp_path):
    with client(tmp_path) as server:
        seen = check(server, StubScorer(), 1000)
    assert min(seen[200], seen[400]) > 100


def test_the_document_takes_its_names_and_examples_from_the_model(artifact):
    scorer = Scorer(artifact, max_candidates=4, max_users=1, warm=False, verify=False)
    post = document("shop", "v7", scorer)["paths"]["/v1/rank"]["post"]
    content = post["requestBody"]["content"]["application/json"]
    properties = content["schema"]["properties"]
    assert list(properties["user"]["properties"]) == ["age", "likes"]
    columns, rows = properties["candidates"]["anyOf"]
    assert list(columns["properties"]) == list(rows["items"]["properties"])
    assert list(columns["properties"]) == ["item", "tags", "price"]
    assert (rows["minItems"], columns["properties"]["item"]["minItems"]) == (1, 1)
    probe = json.loads((artifact / "probe.json").read_text())["request"]
    assert content["example"]["candidates"] == probe["candidates"]
    assert len(content["example"]["bids"]) == len(probe["candidates"]["item"])


def test_times_and_lists_are_described():
    schema = document("stub", "v1", StubScorer())["paths"]["/v1/score"]["post"]["requestBody"]
    properties = schema["content"]["application/json"]["schema"]["properties"]
    columns, _ = properties["behaviors"]["properties"]["views"]["anyOf"]
    assert set(columns["properties"]) == set(REQUEST["behaviors"]["views"])
    assert "time" not in columns["required"]
    tags = columns["properties"]["tags"]["items"]
    assert tags == {"type": ["array", "null"], "items": {"type": ["string", "integer", "null"]}}
