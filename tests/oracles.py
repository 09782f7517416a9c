"""The paper's equations and the authors' networks in float64 NumPy, written out as loops.

Nothing here is packed, masked or split: a batch is a list of samples, a history a list of
behaviours, and a layer a sum over the rows of one matrix. Padding doesn't exist here, so whatever
agrees with these functions has left it out.

A sample is a plain dict. One-hot fields hold an id, multi-hot ones a list of ids:

    {"fields": {"goods": 3, "tags": [1, 2]}, "sequences": {"clicks": [{"goods": 5, "tags": []}]}}

A layer is {"kernel", "bias", "activation"}; an activation is {"kind", and its parameters}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import cross_oracles
import number_oracles
import numpy as np
import option_oracles

Rows = list[np.ndarray]  # one vector an entry
Layers = list[dict[str, Any]]

BATCH_NORM = math.sqrt(1 + 1e-3)  # what TensorFlow's batch normalisation divides by at variance 1


def sigmoid(x: float) -> float:
    """1 / (1 + exp(−x)), for any x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def mean_and_variance(
    rows: Sequence[np.ndarray], weights: Sequence[float] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Each unit's mean and population variance, by their definitions; of rows with weights too."""
    means, variances = [], []
    weights = [float(w) for w in weights] or [1.0] * len(rows)
    total = math.fsum(weights)
    for unit in range(len(rows[0])):
        column = [float(row[unit]) for row in rows]
        mean = math.fsum(w * x for w, x in zip(weights, column, strict=True)) / total
        means.append(mean)
        variances.append(
            math.fsum(w * (x - mean) ** 2 for w, x in zip(weights, column, strict=True)) / total
        )
    return np.array(means), np.array(variances)


def dice(
    rows: Sequence[np.ndarray],
    alpha: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    epsilon: float,
) -> Rows:
    """Eq. 9 with the statistics given."""
    out = []
    for row in rows:
        f = []
        for s, a, e, v in zip(row, alpha, mean, variance, strict=True):
            p = sigmoid((s - e) / (math.sqrt(v) + epsilon))
            f.append(p * s + (1 - p) * a * s)
        out.append(np.array(f))
    return out


def dice_training(
    rows: Sequence[np.ndarray],
    alpha: np.ndarray,
    epsilon: float,
    weights: Sequence[float] = (),
) -> Rows:
    """Eq. 9 with the statistics of these rows, which may have weights."""
    return dice(rows, alpha, *mean_and_variance(rows, weights), epsilon) if len(rows) else []


def prelu(rows: Sequence[np.ndarray], alpha: np.ndarray) -> Rows:
    """Eq. 8."""
    return [
        np.array([s if s > 0 else a * s for s, a in zip(row, alpha, strict=True)]) for row in rows
    ]


def released_dice(rows: Sequence[np.ndarray], alpha: np.ndarray, beta: np.ndarray) -> Rows:
    """The authors' Dice, whose normalisation never leaves inference mode."""
    out = []
    for row in rows:
        f = []
        for x, a, b in zip(row, alpha, beta, strict=True):
            p = sigmoid(b * x / BATCH_NORM)
            f.append(a * (1 - p) * x + p * x)
        out.append(np.array(f))
    return out


def activate(rows: Sequence[np.ndarray], activation: dict[str, Any], train: bool) -> Rows:
    """The activation that `activation["kind"]` names, on all rows of a mini-batch."""
    kind = activation["kind"]
    if kind == "dice" and train:
        return dice_training(rows, activation["alpha"], activation["epsilon"])
    if kind == "dice":
        return dice(rows, **{k: v for k, v in activation.items() if k != "kind"})
    if kind == "prelu":
        return prelu(rows, activation["alpha"])
    if kind == "released_dice":
        return released_dice(rows, activation["alpha"], activation["beta"])
    unit: Callable[[float], float] = {"sigmoid": sigmoid, "relu": lambda x: max(x, 0.0)}[kind]
    return [np.array([unit(x) for x in row]) for row in rows]


def mlp(rows: Sequence[np.ndarray], layers: Layers, train: bool) -> tuple[Rows, list[Rows]]:
    """(outputs, what entered each activation), layer after layer over the whole mini-batch."""
    entered = []
    out = list(rows)
    for layer in layers:
        out = [row @ layer["kernel"] + layer["bias"] for row in out]
        if layer["activation"] is not None:
            entered.append(out)
            out = activate(out, layer["activation"], train)
    return out, entered


def activation_unit(
    histories: Sequence[Sequence[np.ndarray]],
    ads: Sequence[np.ndarray],
    layers: Layers,
    *,
    difference: bool,
    outer: bool,
    train: bool,
    codes: Sequence[Rows] | None = None,
) -> tuple[list[list[float]], list[Rows]]:
    """Eq. 3's a(e_j, v_A): ([sample][behaviour], what entered each activation).

    The first layer multiplies the concatenation [v_A, e_j, v_A − e_j, v_A ∘ e_j or v_A ⊗ e_j], and
    with `codes`, [sample][behaviour], of these at its end.
    """
    inputs = []
    for i, (history, ad) in enumerate(zip(histories, ads, strict=True)):
        for j, behavior in enumerate(history):
            parts = [ad, behavior]
            if difference:
                parts.append(ad - behavior)
            if outer:
                parts.append(np.array([a * e for a in ad for e in behavior]))
            else:
                parts.append(np.array([a * e for a, e in zip(ad, behavior, strict=True)]))
            if codes is not None:
                parts.append(codes[i][j])
            inputs.append(np.concatenate(parts))
    out, entered = mlp(inputs, layers, train)
    scores = iter([float(row[0]) for row in out])
    return [[next(scores) for _ in history] for history in histories], entered


def pool(vectors: Sequence[np.ndarray], width: int, mean: bool) -> np.ndarray:
    """The vectors' sum or mean; zero where there are none."""
    total = np.zeros(width)
    for vector in vectors:
        total = total + vector
    return total / len(vectors) if mean and len(vectors) else total


class WeightedIds(list[int]):
    """The ids of a weighted multi-hot field."""

    def __init__(self, ids: Sequence[int], weights: Sequence[float]):
        super().__init__(ids)
        self.weights = [float(np.float32(w)) for w in weights]


def embed(table: np.ndarray, ids: int | Sequence[int], mean: bool) -> np.ndarray:
    """One id's row, or the pooled rows of several; of weights w the mean is Σ w e / Σ |w|."""
    if isinstance(ids, int):
        return table[ids]
    if isinstance(ids, WeightedIds):
        total = weighted_sum([table[i] for i in ids], ids.weights, table.shape[1])
        return total / math.fsum(map(abs, ids.weights)) if mean and ids else total
    return pool([table[i] for i in ids], table.shape[1], mean)


def weighted_sum(history: Rows, weights: Sequence[float], width: int) -> np.ndarray:
    """Σ_j w_j e_j (Eq. 3); zero where there are no behaviours."""
    return pool([w * e for w, e in zip(weights, history, strict=True)], width, mean=False)


def _histories(
    samples: Sequence[dict[str, Any]],
    sequence: Any,
    tables: dict[str, np.ndarray],
    mean: bool,
    vectors: dict[str, np.ndarray],
) -> tuple[list[Rows], Rows]:
    """(e_j of each sample, v_A of each sample) of a sequence; `vectors` are of numbers."""
    histories, ads = [], []
    for sample in samples:
        histories.append(
            [
                np.concatenate(
                    [embed(tables[f.table], behavior[f.name], mean) for f in sequence.fields]
                    + number_oracles.behavior_parts(behavior, sequence, vectors)
                )
                for behavior in sample["sequences"][sequence.name]
            ]
        )
        ads.append(
            np.concatenate(
                [embed(tables[f.table], sample["fields"][f.ad], mean) for f in sequence.fields]
                + number_oracles.ad_parts(sample, sequence, vectors)
            )
        )
    return histories, ads


def paper(
    samples: Sequence[dict[str, Any]],
    schema: Any,
    tables: dict[str, np.ndarray],
    network: dict[str, Any],
    *,
    attention: bool,
    train: bool,
    mean: bool = False,
    difference: bool = False,
    outer: bool = False,
    interest_product: bool = False,
    item_bias: str = "",
    extra_fields: Sequence[str] = (),
    products: str = "",
    machine: bool = False,
    crosses: dict[str, int] | None = None,
    ad_values: int = 0,
    normalize: str = "none",
    position: bool = False,
    age: bool = False,
    match: bool = False,
    match_counts: bool = False,
    intensity: bool = False,
    bias_fields: Sequence[str] = (),
) -> dict[str, Any]:
    """The base model (section 4.2), and what other models add to it.

    Args:
      samples: the mini-batch, without padding.
      schema: says which fields and sequences there are, and in which order.
      tables: {name: [rows, D]}.
      network: {"mlp": layers, "units": {sequence: layers of its activation unit}, "vectors":
        {numeric field: [2, D]}, "weights": those of the numeric fields in the linear part}.
      attention, difference, outer, interest_product, item_bias, extra_fields: as in the config.
      train: whether Dice takes the statistics of these samples.
      mean: pool multi-hot fields, and in the base model the history, by mean.
      products: PNN's, "inner" or "outer": the MLP's first kernel has rows for them at its end.
      machine: add DeepFM's factorisation machine to the logit of a click.
      crosses: add the weights of Wide & Deep's crosses: {table: buckets}.
      ad_values: how many values of a multi-hot ad field are crossed.
      normalize, position, age, match, match_counts, intensity, bias_fields: as in the config. A
        unit's first kernel has rows for the codes at its end, and the MLP's for the numbers.

    Returns:
      logits [samples, 2]; interest {sequence: [samples, E]}; weights
      {sequence: [sample][behaviour]}; entered {part: what entered each activation}.
    """
    groups: dict[str, list[Rows]] = {"user": [], "ad": [], "context": []}
    for field in schema.fields:
        if not field.optional or field.name in extra_fields:
            groups[field.group].append(
                [embed(tables[field.table], s["fields"][field.name], mean) for s in samples]
            )

    interest: dict[str, Rows] = {}
    with_ad: list[Rows] = []
    weights, entered = {}, {}
    numbers: list[Rows] = []
    for sequence in schema.sequences:
        histories, ads = _histories(samples, sequence, tables, mean, network["vectors"])
        if attention:
            weights[sequence.name], entered[sequence.name] = activation_unit(
                histories,
                ads,
                network["units"][sequence.name],
                difference=difference,
                outer=outer,
                train=train,
                codes=[
                    option_oracles.codes(s, sequence, position=position, age=age, match=match)
                    for s in samples
                ],
            )
            if match_counts:
                numbers.append([option_oracles.match_counts(s, sequence) for s in samples])
            if intensity:
                numbers.append([option_oracles.intensity(w) for w in weights[sequence.name]])
            weights[sequence.name] = [
                option_oracles.normalized(w, normalize) for w in weights[sequence.name]
            ]
            interest[sequence.name] = [
                weighted_sum(history, w, len(ad))
                for history, w, ad in zip(histories, weights[sequence.name], ads, strict=True)
            ]
        else:
            interest[sequence.name] = [
                pool(history, len(ad), mean) for history, ad in zip(histories, ads, strict=True)
            ]
        if interest_product:
            with_ad.append(
                [u * ad for u, ad in zip(interest[sequence.name], ads, strict=True)],
            )

    columns = [
        *groups["user"],
        *interest.values(),
        *groups["ad"],
        *groups["context"],
        *([number_oracles.inputs(s["fields"][n.name]) for s in samples] for n in schema.numbers),
        *with_ad,
    ]
    inputs = [np.concatenate([column[i] for column in columns]) for i in range(len(samples))]
    vectors = [
        [group[i] for group in groups["user"]]
        + [
            part
            for sequence in schema.sequences
            if products or machine
            for part in np.split(
                interest[sequence.name][i], len(sequence.fields) + len(sequence.numbers)
            )
        ]
        + [group[i] for group in [*groups["ad"], *groups["context"]]]
        + [
            number_oracles.vector(samples[i]["fields"][n.name], network["vectors"][n.name])
            for n in schema.numbers
            if products or machine
        ]
        for i in range(len(samples))
    ]
    if products == "inner":
        inputs = [np.append(x, pair_products(v)) for x, v in zip(inputs, vectors, strict=True)]
    elif products == "outer":
        inputs = [
            np.append(x, sum(np.outer(a, b) for a in v for b in v))
            for x, v in zip(inputs, vectors, strict=True)
        ]
    inputs = [np.concatenate([x, *(n[i] for n in numbers)]) for i, x in enumerate(inputs)]
    logits, entered["mlp"] = mlp(inputs, network["mlp"], train)
    for i, sample in enumerate(samples):
        if machine:
            logits[i][1] += linear(sample, schema, tables, mean, extra_fields)
            logits[i][1] += math.fsum(pair_products(vectors[i]))
        if machine or crosses:
            logits[i][1] += number_oracles.linear(sample, schema, network["weights"], mean)
        logits[i][1] += option_oracles.bias(sample, bias_fields, tables)
        for table, buckets in (crosses or {}).items():
            logits[i][1] += cross_oracles.cross(
                sample, schema, tables[table], table, buckets, ad_values, mean
            )
    if item_bias:
        for sample, logit in zip(samples, logits, strict=True):
            logit[1] += tables["item-bias"][sample["fields"][item_bias]][0]
    return {
        "logits": np.array(logits),
        "interest": {name: np.array(rows) for name, rows in interest.items()},
        "weights": weights,
        "entered": entered,
    }


def pair_products(vectors: Rows) -> list[float]:
    """⟨v_i, v_j⟩ of every two vectors, the first with each after it, then the second, …"""
    return [
        math.fsum(a * b for a, b in zip(v, w, strict=True))
        for i, v in enumerate(vectors)
        for w in vectors[i + 1 :]
    ]


def linear(
    sample: dict[str, Any],
    schema: Any,
    tables: dict[str, np.ndarray],
    mean: bool,
    extra_fields: Sequence[str],
) -> float:
    """The weights of a sample's ids: of each input a table, "INPUT-weight"."""

    def weight(table: np.ndarray, ids: Any) -> float:
        return float(embed(table, ids, mean)[0])

    total = 0.0
    for field in schema.fields:
        if not field.optional or field.name in extra_fields:
            total += weight(tables[f"{field.name}-weight"], sample["fields"][field.name])
    for sequence in schema.sequences:
        history = sample["sequences"][sequence.name]
        for field in sequence.fields:
            table = tables[f"{sequence.name}-{field.name}-weight"]
            visited = math.fsum(weight(table, behavior[field.name]) for behavior in history)
            total += visited / len(history) if mean and history else visited
    return total


def idle_batch_norm(row: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Batch normalisation that stays in inference mode with mean 0 and variance 1."""
    return gamma * row / BATCH_NORM + beta


def released(
    samples: Sequence[dict[str, Any]],
    schema: Any,
    tables: dict[str, np.ndarray],
    network: dict[str, Any],
    *,
    attention: bool,
) -> dict[str, Any]:
    """The authors' DIN, or without `attention` their base model, one sample at a time.

    Args:
      samples, schema, tables: see `paper`; one sequence, one-hot ad fields.
      network: "unit" and "mlp": layers; "history_norm" and "input_norm": {"gamma", "beta"};
        "history_dense": {"kernel", "bias"}.
      attention: which of the two.

    Returns:
      logit [samples]; interest [samples, E]; weights [sample][behaviour].
    """
    (sequence,) = schema.sequences
    histories, ads = _histories(samples, sequence, tables, mean=True, vectors={})
    logits, interests, all_weights = [], [], []
    for sample, history, item in zip(samples, histories, ads, strict=True):
        if attention:
            ((scores,), _) = activation_unit(
                [history], [item], network["unit"], difference=True, outer=False, train=False
            )
            weights = option_oracles.softmax([score / math.sqrt(len(item)) for score in scores])
            interest = weighted_sum(history, weights, len(item))
        else:
            weights = []
            interest = pool(history, len(item), mean=True)
        user = idle_batch_norm(interest, **network["history_norm"])
        user = user @ network["history_dense"]["kernel"] + network["history_dense"]["bias"]
        parts = [user, item, user * item] if attention else [user, item]
        x = idle_batch_norm(np.concatenate(parts), **network["input_norm"])
        ((out,), _) = mlp([x], network["mlp"], train=False)
        bias = tables["item-bias"][sample["fields"][sequence.fields[0].ad]][0]
        logits.append(float(out[0] + bias))
        interests.append(interest)
        all_weights.append(weights)
    return {
        "logit": np.array(logits),
        "interest": np.array(interests),
        "weights": all_weights,
    }


def negative_log_likelihood(logits: np.ndarray, labels: Sequence[float]) -> float:
    """Eq. 2: the mean over the samples, p from the softmax over two outputs."""
    losses = []
    for (no, yes), label in zip(logits, labels, strict=True):
        p = sigmoid(yes - no)
        losses.append(-(label * math.log(p) + (1 - label) * math.log(1 - p)))
    return math.fsum(losses) / len(losses)


def derivative(f: Callable[[np.ndarray], float], at: np.ndarray, step: float) -> np.ndarray:
    """∂f/∂at by central differences, an entry at a time."""
    slope = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (f(up) - f(down)) / (2 * step)
    return slope
