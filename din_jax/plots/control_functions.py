"""Fig. 3 of the paper: control functions of PReLU and Dice, over the inputs of trained layers."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from din_jax.errors import DinError
from din_jax.plots.picture import BLUE, GREY, VERMILION, Picture, new_figure, style
from din_jax.plots.recombined import recombined
from din_jax.plots.scored_run import ScoredRun

Array = npt.NDArray[Any]
_SAMPLES = 2048  # whose inputs are drawn
_UNITS = 3  # columns


def dice_control(s: Array, mean: float, variance: float, epsilon: float = 1e-8) -> Array:
    """p(s) of Dice (Eq. 9): 1 / (1 + exp(−(s − E[s]) / (√Var[s] + ε)))."""
    x = (np.asarray(s, np.float64) - mean) / (np.sqrt(variance) + epsilon)
    return 0.5 * (1 + np.tanh(x / 2))  # the sigmoid, without overflow


def prelu_control(s: Array) -> Array:
    """p(s) of PReLU (Eq. 8): 1 where s > 0, else 0."""
    return (np.asarray(s) > 0).astype(np.float64)


def layer_inputs(scored: ScoredRun, samples: int = _SAMPLES) -> dict[str, Array]:
    """{activation: float32 [rows, units], the inputs s of a trained layer's Dice or PReLU}.

    Args:
      scored: the run.
      samples: how many of the split's samples, chosen at random.
    """
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(scored.samples, min(samples, len(scored.samples)), replace=False))
    found: dict[str, list[Array]] = {}
    for outputs, _ in scored.outputs(recombined(scored.store, chosen), activations=True):
        for name, (s, real) in outputs.activation_inputs.items():
            found.setdefault(name, []).append(s[real])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def statistics(scored: ScoredRun) -> dict[str, tuple[Array, Array]]:
    """{activation: (mean [F], variance [F])}, Dice's moving averages; empty without Dice."""
    found: dict[str, dict[str, Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(scored.state.batch_stats):
        *names, kind = (str(key.key) for key in path)
        found.setdefault("/".join(names), {})[kind] = np.asarray(leaf)
    return {name: (of["mean"], of["variance"]) for name, of in found.items() if "variance" in of}


def control_functions(scored: ScoredRun) -> Picture:
    """Fig. 3: what share of the input a unit passes on, p(s), over the inputs that it has.

    A row is a layer, a column one of its units. Raises DinError if the model has neither Dice nor
    PReLU.
    """
    inputs = layer_inputs(scored)
    if not inputs:
        raise DinError(
            f"{scored.workdir}: the model has no Dice and no PReLU; this figure is of their inputs"
        )
    learned = statistics(scored)
    epsilon = float(scored.run.config.model.dice.epsilon)
    data: dict[str, Any] = {}
    with style():
        figure, axes = new_figure(len(inputs), _UNITS, size=(7.4, 0.5 + 1.75 * len(inputs)))
        for row, (name, s) in zip(axes, inputs.items(), strict=True):
            mean, variance = learned.get(name, (s.mean(axis=0), s.var(axis=0)))
            # Units whose means are low, in the middle and high.
            order = np.argsort(mean)
            units = order[np.linspace(0, len(order) - 1, _UNITS + 2).round().astype(int)[1:-1]]
            for ax, unit in zip(row, dict.fromkeys(units.tolist()), strict=False):
                _panel(ax, s[:, unit], float(mean[unit]), float(variance[unit]), epsilon)
                ax.set_title(f"{_layer(name)}, unit {unit}", fontsize=8)
                data[f"{name} {unit}"] = (float(mean[unit]), float(variance[unit]))
            for ax in row[len(dict.fromkeys(units.tolist())) :]:
                ax.set_visible(False)
            row[0].set_ylabel("p(s)")
        for ax in axes[-1]:
            ax.set_xlabel("input s")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize=8)
    is_dice = bool(learned)
    what = "the moving averages that Dice has learned" if is_dice else "those of these inputs"
    return Picture(
        "control_functions",
        "Control functions (Fig. 3)",
        figure,
        "An activation passes on p(s) · s + (1 − p(s)) · α · s. PReLU's p is a step at 0 whatever "
        "its inputs are; Dice's is a sigmoid whose middle is the mean E[s] and whose width is the "
        f"standard deviation. E[s] and Var[s] are {what}; grey: the histogram of the "
        f"inputs of {min(_SAMPLES, len(scored.samples)):,} samples of {scored.split}. Units of "
        f"each layer with a low, a middle and a high mean. The run was trained with "
        f"{'Dice' if is_dice else 'PReLU'}.",
        data,
    )


def _panel(ax: Any, s: Array, mean: float, variance: float, epsilon: float) -> None:
    low, high = np.quantile(s, [0.001, 0.999])
    low, high = min(low, -0.1 * (high - low)), max(high, 0.1 * (high - low))
    if not high > low:
        low, high = low - 1, high + 1
    grid = np.linspace(low, high, 400)
    heights, edges = np.histogram(s, bins=40, range=(low, high))
    ax.stairs(heights / max(heights.max(), 1), edges, fill=True, color="#d5d5d5", label="inputs")
    deviation = float(np.sqrt(variance))
    ax.axvspan(mean - deviation, mean + deviation, color=BLUE, alpha=0.10, linewidth=0)
    ax.axvline(mean, color=BLUE, linewidth=1, linestyle=":", label="E[s] ± √Var[s]")
    ax.plot(grid, dice_control(grid, mean, variance, epsilon), color=BLUE, label="Dice")
    ax.plot(grid, prelu_control(grid), color=VERMILION, linestyle="--", label="PReLU")
    ax.set(xlim=(low, high), ylim=(-0.03, 1.06))
    ax.tick_params(labelsize=7)
    ax.spines["bottom"].set_color(GREY)


def _layer(name: str) -> str:
    """The name of a layer for people: "activation_unit_history/activation_0" and others."""
    module, _, activation = name.rpartition("/")
    number = activation.rpartition("_")[2]
    module = module.rpartition("/")[2]
    if module == "mlp":
        return f"MLP, layer {int(number) + 1}" if number.isdecimal() else "MLP"
    return "activation unit" if module.startswith("activation_unit") else name
