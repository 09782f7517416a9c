"""What is wrong with a request is said with the field's name, and with a status of 4xx."""

import copy
import json
import re

import pytest
from stubs import REQUEST, StubScorer, client, probabilities

LIMITS = {"candidates": 6, "history": 5, "body_bytes": 4000}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with client(tmp_path_factory.mktemp("server"), StubScorer(fails=True), **LIMITS) as one:
        yield one


def changed(path, value):
    """The request with another value at a path; `...` removes it."""
    request = copy.deepcopy(REQUEST)
    *parents, last = path.split("/")
    place = request
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return request


VIEWS = REQUEST["behaviors"]["views"]


@pytest.mark.parametrize(
    ("path", "value", "field", "message"),
    [
        ("users", {}, "users", "unknown"),
        ("candidates", ..., "candidates", "missing"),
        ("candidates", [], "candidates", "none; expected one or more"),
        ("candidates", {}, "candidates", "none"),
        ("candidates", "item", "candidates", "expected `object | array`, got `str`"),
        ("candidates/item", [], "candidates", "lists of different lengths: item 0, tags 4"),
        ("candidates/item", ..., "candidates.item", "missing"),
        ("candidates/item", 5, "candidates.item", "expected a list of values"),
        ("candidates/item", [1, 2, 3, True], "candidates.item", "True; expected an id"),
        ("candidates/item", [1, 2, 3, {}], "candidates.item", "{}; expected an id"),
        ("candidates/tags", ["red", [], [], []], "candidates.tags", "'red'; expected a list"),
        ("candidates/tags", [["red"] * 5, [], [], []], "candidates.tags", "5 values; at most 4"),
        ("candidates/price", [1, 2, 3, "4"], "candidates.price", "'4'; expected a number"),
        ("candidates/color", [1, 2, 3, 4], "candidates.color", "unknown; expected: item, tags"),
        ("candidates", [{"item": 1}] * 7, "candidates", "7; at most 6 are taken"),
        ("candidates", [{"item": 1}], "candidates[0].tags", "missing"),
        ("candidates", [3], "candidates[0]", "expected an object"),
        ("user", {}, "user.age", "missing; expected a value, or null"),
        ("user", None, "user", "expected `object`, got `null`"),
        ("user/shoe", 3, "user.shoe", "unknown; expected: age"),
        ("context/hour", "noon", "context.hour", "'noon'; expected a number"),
        ("context/hour", 1e39, "context.hour", "1e+39; expected a finite number up to 3.4e+38"),
        ("context/hour", 10**400, "context.hour", "1000"),
        ("candidates/item", [9, 9, 9, 9], "body", "no finite probability"),
        ("behaviors/likes", {}, "behaviors.likes", "unknown; expected: views"),
        ("behaviors/views", {**VIEWS, "item": [3] * 6}, "behaviors.views", "6 behaviors; at most"),
        ("behaviors/views/item", [3], "behaviors.views", "lists of different lengths"),
        ("behaviors/views/time", ["now", 1], "behaviors.views.time", "'now'; expected seconds"),
        ("behaviors/views/time", [1e30, 1], "behaviors.views.time", "1e+30; expected seconds"),
        ("time", ..., "time", "missing; the model reads ages"),
        ("time", "now", "time", "expected `int | null`, got `str`"),
        ("time", 2**60, "time", "expected `int` <= 9007199254740992"),
        ("bids", [1, 2], "bids", "2; expected 4, one a candidate"),
        ("bids", [1, 2, 3, -4], "bids[3]", "expected `float` >= 0"),
        ("bids", [1, 2, 3, None], "bids[3]", "expected `float`, got `null`"),
        ("alpha", 0, "alpha", "expected `float` > 0"),
    ],
)
def test_a_wrong_field_is_named(server, path, value, field, message):
    answer = server.post("/v1/rank", json=changed(path, value))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["field"] == field
    assert error["message"].startswith(message)


def test_a_wrong_value_is_not_echoed_at_length(server):
    answer = server.post("/v1/score", json=changed("context/hour", "x" * 3000))
    assert answer.status_code == 400
    assert len(answer.content) < 400


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body"),
        (b"[]", 400, "body"),
        (b"null", 400, "body"),
        (b"\xff\xfe", 400, "body"),
        (b'{"candidates": {"item": [NaN]}}', 400, "body"),
        (b'{"candidates": {"item": [1e999]}}', 400, "candidates[...][0]"),
        (b'{"candidates": {"item": ["\\ud800"]}}', 400, "body"),
        (b'{"candidates": ' + b"[" * 3000, 400, "body"),
        (b" " * 4001, 413, None),
    ],
)
def test_what_is_no_json_or_too_large_is_refused(server, body, status, field):
    headers = {"Content-Type": "application/json"}
    answer = server.post("/v1/score", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["field"] == field


def test_a_body_in_chunks_is_measured_too(server):
    headers = {"Content-Type": "application/json"}
    answer = server.post("/v1/score", content=iter([b" " * 500] * 9), headers=headers)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    whole = json.dumps(REQUEST).encode()
    parts = (whole[i : i + 50] for i in range(0, len(whole), 50))
    assert server.post("/v1/score", content=parts, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/score", {}, 405),
        ("DELETE", "/metrics", {}, 405),
        ("POST", "/v1/scores", {}, 404),
        ("POST", "/v1/score/", {}, 404),
        ("GET", "/v2/models/other", {}, 404),
        ("POST", "/v1/score", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/score", {"Content-Encoding": "gzip"}, 415),
        ("POST", "/v1/score", {"X-Timeout-Ms": "soon"}, 400),
        ("POST", "/v1/score", {"X-Timeout-Ms": "nan"}, 400),
        ("POST", "/v1/score", {"X-Timeout-Ms": "-1"}, 400),
    ],
)
def test_wrong_requests_get_a_problem_of_json(server, method, path, headers, status):
    given = {"Content-Type": "application/json"} | headers
    answer = server.request(method, path, content=json.dumps(REQUEST), headers=given)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"field", "message"}


def test_an_internal_error_answers_its_id_alone(server, caplog):
    request = changed("candidates", [{"item": 10, "tags": [], "price": 1}])
    answer = server.post("/v1/score", json=request)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert re.fullmatch(r"[0-9a-f]{16}", error["id"])
    assert "secret" not in answer.text
    assert error["id"] in caplog.text
    assert "a secret of the inside" in caplog.text


def test_columns_and_rows_are_the_same(server):
    items = REQUEST["candidates"]["item"]
    rows = [
        dict(zip(REQUEST["candidates"], row, strict=True))
        for row in zip(*REQUEST["candidates"].values(), strict=True)
    ]
    for request in (REQUEST, changed("candidates", rows)):
        answer = server.post("/v1/score", json=request)
        assert answer.status_code == 200
        assert answer.json() == {
            "probabilities": probabilities(items),
            "model": {"name": "stub", "version": "v1"},
            "unknown_ids": 2,  # item 99 and tag pink
        }
