"""Shows the best simple baseline beside a run's test metrics."""

from __future__ import annotations

from collections.abc import Mapping

from din_jax.baselines.evaluate import Best, best_baseline
from din_jax.distributed import processes
from din_jax.metrics import SELECTABLE, lower_is_better
from din_jax.training.run import Run


def print_best_baseline(run: Run, metrics: Mapping[str, float]) -> None:
    """Prints the metrics of the best simple baseline beside the model's, on test.

    The baselines are fitted on the samples that the model was fitted on, and the best one is chosen
    on validation, by `train.select`. If the model is below it, a sentence says so. Process 0 alone
    computes them. An error is printed, not raised: the run is complete and saved.

    Args:
      run: the run.
      metrics: of the model on test.
    """
    data, select = run.config.data, run.config.train.select

    def work() -> None:
        try:
            best = best_baseline(run.store, select, fit=data.fit, max_history=data.max_history)
        except Exception as error:
            print(f"best simple baseline: not computed ({type(error).__name__}: {error})")
            return
        print(comparison(best, metrics, select))
        command = f"python -m din_jax.report baselines --store {run.store.path}"
        print(
            f"all baselines: {command}"
            + f" --max_history {data.max_history}" * bool(data.max_history)
        )

    processes.first_alone(work)


def comparison(best: Best, metrics: Mapping[str, float], select: str) -> str:
    """The metrics of the best baseline and of the model as text; and a sentence if it is better.

    Args:
      best: the baseline.
      metrics: of the model on test.
      select: the metric that the two are compared by.
    """
    lines = [f"best simple baseline: {best.name}", f"  {'':<28}{'baseline':>12}{'model':>12}"]
    lines += [
        f"  {name:<28}{best.metrics[name]:>12.6f}{metrics[name]:>12.6f}"
        for name in SELECTABLE
        if name in best.metrics
    ]
    model, baseline = metrics[select], best.metrics[select]
    if model > baseline if lower_is_better(select) else model < baseline:
        lines.append(
            f"The model is below this simple baseline: {select} {model:.4f}, and {baseline:.4f} by "
            f"{best.name}. `python -m din_jax.report search` looks for better hyper-parameters."
        )
    return "\n".join(lines)
