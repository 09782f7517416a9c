"""The routes of the server, over a scorer that computes nothing."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from stubs import REQUEST, StubScorer, client, probabilities

ITEMS = REQUEST["candidates"]["item"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with client(tmp_path_factory.mktemp("server")) as one:
        yield one


def metrics(server, **options):
    """{(name, labels in order): value}."""
    text = server.get("/metrics", **options).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_ranking_has_the_index_of_each_candidate(server):
    bids, alpha = [1.0, 9.0, 2.0, 0.0], 2.0
    answer = server.post("/v1/rank", json={**REQUEST, "bids": bids, "alpha": alpha}).json()
    p = probabilities(ITEMS)
    value = [bid * p**alpha for bid, p in zip(bids, p, strict=True)]
    order = sorted(range(4), key=lambda i: -value[i])
    assert answer["indices"] == order
    assert answer["probabilities"] == [p[i] for i in order]
    assert answer["values"] == pytest.approx([value[i] for i in order])


def test_an_explanation_has_a_weight_for_each_behavior(server):
    answer = server.post("/v1/explain", json=REQUEST).json()
    assert answer["weights"] == {"views": [[1.0, 1.0]] * 4}
    assert answer["probabilities"] == probabilities(ITEMS)


def test_only_models_with_an_activation_unit_explain(tmp_path):
    scorer = StubScorer()
    scorer.artifact.manifest["activation_weights"] = []
    with client(tmp_path, scorer) as server:
        answer = server.post("/v1/explain", json=REQUEST)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "din has no activation unit; only din has one"


def test_the_open_inference_protocol(server):
    assert server.get("/v2").json()["name"] == "din_jax"
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == {"ready": True}
    assert server.get("/v2/models/stub/ready").json() == {"name": "stub", "ready": True}
    model = server.get("/v2/models/stub").json()
    assert model["versions"] == ["v1"]
    assert {i["name"]: (i["datatype"], i["shape"]) for i in model["inputs"]} == {
        "user.age": ("BYTES", [1]),
        "context.hour": ("FP64", [1]),
        "candidates.item": ("BYTES", [-1]),
        "candidates.tags": ("BYTES", [-1, -1]),
        "candidates.price": ("FP64", [-1]),
        "behaviors.views.item": ("BYTES", [-1]),
        "behaviors.views.tags": ("BYTES", [-1, -1]),
        "behaviors.views.price": ("FP64", [-1]),
    }


def test_metrics_count_routes_statuses_batches_and_unknown_ids(tmp_path):
    with client(tmp_path) as server:
        for request in (REQUEST, REQUEST, {**REQUEST, "user": 1}):
            server.post("/v1/score", json=request)
        server.get("/nowhere")
        server.get("/v2/models/stub/ready")
        server.post("/v1/rollback", json={})
        found = metrics(server)
    assert found["din_jax_requests_total", "/v1/score", "200"] == 2
    assert found["din_jax_requests_total", "/v1/score", "400"] == 1
    assert found["din_jax_requests_total", "/v1/rollback", "409"] == 1
    assert found["din_jax_requests_total", "other", "404"] == 1
    assert found["din_jax_requests_total", "/v2/models/{name}/ready", "200"] == 1
    assert found["din_jax_request_seconds_count", "/v1/score"] == 3
    assert found["din_jax_batch_size_sum",] == 2
    assert found["din_jax_candidates_total",] == 8
    assert found["din_jax_unknown_ids_total",] == 4
    assert found["din_jax_queue_length",] == 0
    assert found["din_jax_model_info", "stub", "v1"] == 1
    assert found["din_jax_reloads_total", "loaded"] == 1
    assert found["din_jax_reloads_total", "refused"] == 0


def test_a_token_is_asked_for_by_all_but_health(tmp_path):
    good = {"Authorization": "Bearer s3cret"}
    with client(tmp_path, token="s3cret") as server:
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/page/page.js"):
            assert server.get(path).status_code == 200
        closed = (
            "/metrics",
            "/openapi.json",
            "/v1/inputs",
            "/v1/ids/item",
            "/page/nothing",
            "/page/",
        )
        for path in (*closed, "/v2", "/v2/models/stub", "/nowhere"):
            assert server.get(path).status_code == 401
            assert server.get(path, headers=good).status_code in (200, 404)
        for path in ("/v1/score", "/v1/rank", "/v1/explain", "/v1/rollback"):
            refused = server.post(path, json=REQUEST)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer s3cre", "Bearer", "s3cret", "Basic s3cret", "Bearer s3cret2"):
            answer = server.get("/metrics", headers={"Authorization": wrong})
            assert answer.status_code == 401, wrong
        assert server.post("/v1/score", json=REQUEST, headers=good).status_code == 200
        found = metrics(server, headers=good)
    assert found["din_jax_requests_total", "/v1/rollback", "401"] == 1


def test_a_rollback_is_refused_where_everybody_may_ask(tmp_path):
    with client(tmp_path, rollback=False) as server:
        assert server.post("/v1/rollback", json={}).status_code == 403


def test_a_page_of_a_browser_can_not_roll_back(server):
    """Without a preflight a page can post forms and text to an address of this machine only."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = server.post("/v1/rollback", content="{}", headers={"Content-Type": kind})
        assert answer.status_code == 415


def test_the_answers_to_openapi_examples_are_as_described(server):
    document = server.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    for path in ("/v1/score", "/v1/rank", "/v1/explain"):
        operation = document["paths"][path]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        answer = server.post(path, json=example)
        assert answer.status_code == 200
        described = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert list(answer.json()) == described["required"]
    gets = [path for path, operations in document["paths"].items() if "get" in operations]
    assert len(gets) == 9
    for path in gets:
        assert server.get(path.replace("{table}", "item")).status_code == 200
    assert json.dumps(REQUEST["candidates"]["item"]) in json.dumps(document)
