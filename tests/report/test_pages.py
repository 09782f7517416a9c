"""`report run` and `report compare RUN RUN`: the numbers, and the page."""

import html.parser
import json
import re

import numpy as np
import pytest
from runs import commands
from untrained import prepare_log, random_run

from din_jax.errors import DinError
from din_jax.metrics import all_metrics, auc, user_auc, user_weighted_auc
from din_jax.plots.calibration import reliability
from din_jax.plots.influence import influence
from din_jax.plots.scored_run import ScoredRun
from din_jax.prepare import planted
from din_jax.report import causes, run_page
from din_jax.report.metric_intervals import metric_differences, metric_intervals, statistics
from din_jax.report.page import Section, Table, Text, render, write
from din_jax.report.runs_page import compare_runs, runs_page

LOG = [
    {"step": 4, "split": "train", "loss": 0.7, "epoch": 1.0, "samples_per_s": 64.0,
     "input_wait": 0.1},
    {"step": 4, "split": "validation", "log_loss": 0.6, "auc": 0.6, "user_weighted_auc": 0.5},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    prepare_log(folder, rows=1500)
    for seed, name in enumerate(("a", "b")):
        random_run(folder / "store", folder / name, seed=seed)
        text = "".join(json.dumps(line) + "\n" for line in LOG)
        (folder / name / "metrics.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    return [ScoredRun.load(folder / name) for name in ("a", "b")]


class Parsed(html.parser.HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(text):
    """What a reader without sight, a network or a wide screen needs."""
    page = Parsed(text)
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("h1")) == 1
    anchors = {h["id"] for h in page.of("h2")}
    assert {a["href"] for a in page.of("a")} == {f"#{anchor}" for anchor in anchors}
    assert all(th["scope"] in ("row", "col") for th in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table")) > 0
    assert all(i["alt"] and i["src"].startswith("data:image/svg+xml;") for i in page.of("img"))
    assert not page.of("script") and not page.of("link") and not page.of("iframe")
    outside = [
        v for _, attributes in page.elements for v in attributes.values() if "//" in (v or "")
    ]
    assert outside == []
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import", text)
    return page


def test_statistics_are_the_metrics_with_weights():
    rng = np.random.default_rng(0)
    users, y = rng.integers(20, size=400), rng.integers(2, size=400)
    p = np.round(rng.random(400), 2)  # with ties
    own = rng.integers(0, 4, 400).astype(float)
    drawn = np.bincount(rng.integers(20, size=20), minlength=20)[users].astype(float)
    found = statistics(users, y, p, own)
    plain = all_metrics(users, y, p, drawn)
    weighted = all_metrics(users, y, p, own * drawn)
    for name, statistic in found.items():
        expected = weighted if name.startswith("weighted_") else plain
        expected = expected[f"weighted_{name.removeprefix('weighted_')}"]
        assert statistic(drawn) == pytest.approx(expected), name
    assert {"weighted_auc", "log_loss", "expected_calibration_error"} <= set(found)
    scores = statistics(users, y, 100 * p, calibrated=False)
    assert set(scores) == {"user_weighted_auc", "auc"}


def test_intervals_are_around_the_metrics_of_the_evaluation(runs):
    scores = runs[0].scores
    for name, interval in metric_intervals(scores).items():
        assert interval.value == pytest.approx(scores.metrics[name]), name
        assert interval.low < interval.high
        if not name.startswith("expected"):  # its resamples are biased upwards
            assert interval.low < interval.value < interval.high


def test_differences_are_paired(runs):
    a, b = (run.scores for run in runs)
    other = a.probabilities * 0.99 + 0.01 * b.probabilities  # nearly the same model
    ours = statistics(a.users, a.labels, a.probabilities)
    found = metric_differences(a.users, ours, statistics(a.users, a.labels, other))
    expected = user_weighted_auc(a.users, a.labels, a.probabilities)
    expected -= user_weighted_auc(a.users, a.labels, other)
    difference = found["user_weighted_auc"]
    assert difference.value == pytest.approx(expected)
    alone = metric_intervals(a)["user_weighted_auc"]
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)
    assert metric_differences(a.users, ours, ours)["auc"] == (0, 0, 0)
    compared = compare_runs(runs)
    assert list(compared["metrics"]) == ["a", "b"] and list(compared["differences"]) == ["b"]
    value = auc(b.labels, b.probabilities) - auc(a.labels, a.probabilities)
    assert compared["differences"]["b"]["auc"].value == pytest.approx(value)


def test_a_run_is_one_page(runs, monkeypatch):
    drawn = [("reliability", reliability(runs[0])), ("embeddings", DinError("no <goods>"))]
    monkeypatch.setattr(run_page, "all_pictures", lambda scored: iter(drawn))
    page = check_page(run_page.run_page(runs[0]))
    titles = [h["id"] for h in page.of("h2")]
    assert titles == [
        *("metrics", "simple-baselines", "figures", "data", "training"),
        *("configuration", "environment"),
    ]
    assert len(page.of("img")) == 1
    assert "embeddings: not drawn: no <goods>." in page.text
    scores = runs[0].scores
    assert f"{scores.metrics['user_weighted_auc']:.4f}" in page.text
    words = " ".join(page.text.split())
    assert "logistic regression" in words
    assert "seconds in steps, without compiling and evaluating 4 " in words  # 4 · 64 / 64
    assert "config.model.embedding_dim 4 " in words  # and not the preset's
    assert "Planted data" not in words


def test_runs_side_by_side_are_one_page(runs, folder, tmp_path):
    text, lines = runs_page(runs)
    page = check_page(text)
    assert len(page.of("img")) == 1
    assert "Differences from a, paired over users" in page.text
    assert re.search(r"config\.seed", page.text) is None  # they differ in their weights alone
    assert lines.splitlines()[1].startswith("b: user_weighted_auc 0.")
    with pytest.raises(DinError, match="expected two runs or more"):
        runs_page(runs[:1])
    with pytest.raises(DinError, match="a run is named twice"):
        runs_page([runs[0], runs[0]])
    other = tmp_path / "other"
    other.mkdir()
    prepare_log(other, rows=1400, seed=1)
    random_run(other / "store", other / "run")
    with pytest.raises(DinError, match="are scored on different samples"):
        compare_runs([runs[0], ScoredRun.load(other / "run")])


def test_text_is_no_markup(tmp_path):
    table = Table("a & b", ["x", "<y>"], [("<script>alert(1)</script>", "-1.5"), ("", "1,000")])
    text = render("<title>", "&", [Section("S", [Text("<b>"), table]), Section("empty", [])])
    page = Parsed(text)
    assert not page.of("script") and not page.of("b")
    assert "<script>alert(1)</script>" in page.text
    assert [td["class"] for td in page.of("td")] == ["number", "number"]
    assert "empty" not in page.text
    write(tmp_path / "new" / "page.html", text)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["page.html"]


def test_influence_is_the_logit_without_the_behaviour(runs):
    """Against a store whose histories are cut by hand: without the first, or the last."""
    run = runs[0]
    samples = run.samples[:40]
    start, end = run.history("history", samples)
    found = influence(run, samples, "history")
    offsets = np.concatenate([[0], np.cumsum(end - start)])
    assert len(found) == offsets[-1]

    def logits(start, end):
        columns = {}
        for name, values in (("start", start), ("end", end)):
            column = run.store.column(f"sequences/history.{name}").astype(np.int64)
            column[samples] = values
            columns[f"sequences/history.{name}"] = column
        p = run.run.evaluator("test", run.store.with_columns(columns)).probabilities(run.state)
        return (np.log(p) - np.log1p(-p))[: len(samples)]

    whole = logits(start, end)
    some = np.flatnonzero(end > start)
    first = whole - logits(np.minimum(start + 1, end), end)
    last = whole - logits(start, np.maximum(end - 1, start))
    np.testing.assert_allclose(found[offsets[some]], first[some], atol=1e-5)
    np.testing.assert_allclose(found[offsets[some + 1] - 1], last[some], atol=1e-5)
    assert np.abs(found).max() > 0.01


def test_causes_are_told_by_weights_that_know_them(tmp_path, monkeypatch):
    """A run on planted data, whose weights and influence are replaced by known ones."""
    planted.prepare(tmp_path / "store", users=80)
    random_run(tmp_path / "store", tmp_path / "run", **{"model.attention.age": False})
    run = ScoredRun.load(tmp_path / "run")
    bundle = np.array([-1, *run.store.origin[planted.CAUSE]["group_of_id"]])
    category = run.store.column("events/history/category")

    def truth(samples, w):
        of = np.repeat(np.arange(len(samples)), np.diff(w.offsets))
        ad = bundle[run.store.column("fields/category")[samples]][of]
        return (bundle[category[w.events]] == ad).astype(np.float32)

    own = ScoredRun.weights_of
    random = causes.cause_auc(run)
    # By hand: the mean of the AUCs within clicked samples, weighted by behaviours.
    clicked = run.samples[run.scores.labels == 1]
    w = own(run, clicked)["history"]
    of = np.repeat(np.arange(len(clicked)), np.diff(w.offsets))
    expected = user_auc(of, truth(clicked, w), w.weights).weighted("impressions")
    assert random.weights == pytest.approx(expected)
    assert random.weights < 0.9

    def knowing(self, samples, features=None):
        w = own(self, samples, features)["history"]
        return {"history": w._replace(weights=truth(samples, w))}

    monkeypatch.setattr(ScoredRun, "weights_of", knowing)
    monkeypatch.setattr(
        causes, "influence", lambda s, samples, name: -truth(samples, own(s, samples)[name])
    )
    found = causes.cause_auc(run)
    assert (found.weights, found.without_shared, found.influence) == (1, 1, 0)


def test_other_data_tell_no_causes(runs):
    assert causes.cause_auc(runs[0]) is None


@pytest.mark.long
def test_the_commands_write_pages_or_one_clear_error(folder, tmp_path):
    report = ["-m", "din_jax.report"]
    a, b = folder / "a", folder / "b"
    out = tmp_path / "page.html"
    mistakes = (
        (["compare", a], "expected two runs or more"),
        (["compare", a, b, "--seeds=2"], "--seeds: trained runs are named alone"),
        (["compare", a, tmp_path / "none"], "none"),
        (["run"], "--workdir=… is required"),
        (["run", f"--workdir={a}", "--split=tset"], "no split 'tset'"),
        (["run", f"--workdir={a}", "--seeds=2"], "--seeds is no flag of `run`"),
        (["run", f"--workdir={a}", "extra"], "unexpected argument 'extra'"),
    )
    done, *failed = commands(
        [*report, "compare", a, b, f"--out={out}"], *([*report, *words] for words, _ in mistakes)
    )
    assert done.returncode == 0, done.stderr
    assert f"report written to {out}" in done.stdout
    check_page(out.read_text())
    for one, (_, message) in zip(failed, mistakes, strict=True):
        assert one.returncode == 1, (one.stdout, message)
        assert re.search(f"^error: .*{re.escape(message)}", one.stderr, re.MULTILINE), one.stderr
        assert "Traceback" not in one.stderr
