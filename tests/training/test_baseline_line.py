"""The best simple baseline beside a run's test metrics."""

import pytest
from runs import tiny_config

from din_jax.baselines.evaluate import Best, best_baseline
from din_jax.training import baseline
from din_jax.training.baseline import comparison, print_best_baseline
from din_jax.training.run import open_run

RATE = Best("click rate of item", {"user_weighted_auc": 0.61, "auc": 0.62, "log_loss": 0.63})
COUNT = Best("count of item in history", {"user_weighted_auc": 0.61, "auc": 0.62})


@pytest.mark.parametrize(
    ("best", "select", "model", "below"),
    [
        (RATE, "user_weighted_auc", 0.6, True),
        (RATE, "user_weighted_auc", 0.62, False),
        (COUNT, "auc", 0.6, True),
        (RATE, "log_loss", 0.64, True),
        (RATE, "log_loss", 0.6, False),
        (RATE, "auc", float("nan"), False),
    ],
)
def test_words_say_that_the_model_is_below(best, select, model, below):
    text = comparison(
        best, {"user_weighted_auc": 0.7, "auc": 0.7, "log_loss": 0.5} | {select: model}, select
    )
    sentence = (
        f"The model is below this simple baseline: {select} {model:.4f}, and "
        f"{best.metrics[select]:.4f} by {best.name}. `python -m din_jax.report search` looks for "
        "better hyper-parameters."
    )
    assert (sentence in text) == below == ("below" in text)
    assert text.splitlines()[0] == f"best simple baseline: {best.name}"
    assert f"{best.metrics[select]:.6f}{model:>12.6f}" in text
    assert ("log_loss" in text) == (best is RATE)


def test_a_run_is_compared_with_the_best_baseline_of_its_own_histories(planted_store, capsys):
    run = open_run(tiny_config(planted_store, **{"train.select": "auc"}))
    best = best_baseline(run.store, "auc", max_history=4)
    assert best.metrics != best_baseline(run.store, "auc").metrics
    metrics = {"user_weighted_auc": 0.5, "auc": 0.5, "log_loss": 0.7}
    print_best_baseline(run, metrics)
    printed = capsys.readouterr().out
    assert printed.startswith(comparison(best, metrics, "auc"))
    assert printed.endswith(f"baselines --store {planted_store} --max_history 4\n")


def test_a_baseline_that_cannot_be_computed_loses_no_run(planted_store, capsys, monkeypatch):
    def fails(*_, **__):
        raise MemoryError("of 9 GB")

    run = open_run(tiny_config(planted_store))
    monkeypatch.setattr(baseline, "best_baseline", fails)
    print_best_baseline(run, {})
    printed = capsys.readouterr().out
    assert printed == "best simple baseline: not computed (MemoryError: of 9 GB)\n"
