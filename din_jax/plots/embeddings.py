"""Fig. 6 of the paper: the embeddings of goods by t-SNE, and one user's predicted CTR."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.data.schema import Field
from din_jax.errors import DinError
from din_jax.plots.activation_weights import telling_samples
from din_jax.plots.picture import BLACK, GREY, Picture, new_figure, style
from din_jax.plots.scored_run import ScoredRun

Array = npt.NDArray[Any]
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")  # as many as the paper has categories
_GOODS = 100  # of a category, as in the paper


def tsne(vectors: Array, seed: int = 0) -> Array:
    """float [N, 2]: t-SNE (van der Maaten & Hinton 2008) of vectors [N, D], by scikit-learn."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, (len(vectors) - 1) / 3))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(
        np.asarray(vectors, np.float64)
    )


def goods_of_split(scored: ScoredRun, category: str) -> tuple[Array, Array, Array]:
    """The goods that are ads: (rows of their table, a sample of each, its first category)."""
    goods = scored.store.column(f"fields/{scored.goods().name}")
    rows, samples = np.unique(goods, return_index=True)
    groups = scored.first_ids(f"fields/{category}", samples)
    known = (rows > 0) & (groups > 0)
    return rows[known], samples[known], groups[known]


def shown_categories(scored: ScoredRun, sample: int, field: str, category: Array) -> Array:
    """Up to nine categories: half of those of the user's behaviours, then the largest others."""
    sizes = np.bincount(category)
    visited: list[int] = []
    for sequence in scored.schema.sequences:
        for behavior in sequence.fields:
            if behavior.ad == field:
                start, end = scored.history(sequence.name, np.array([sample]))
                column = f"events/{sequence.name}/{behavior.name}"
                ids = scored.first_ids(column, np.arange(start[0], end[0]))
                ids, counts = np.unique(ids, return_counts=True)
                visited += ids[np.argsort(-counts, kind="stable")].tolist()
    visited = [v for v in dict.fromkeys(visited) if 0 < v < len(sizes) and sizes[v]]
    largest = [c for c in np.argsort(-sizes, kind="stable").tolist() if sizes[c]]
    count = len(_MARKERS)
    kept = visited[: (count + 1) // 2]
    kept += [c for c in largest if c not in visited][: count - len(kept)]
    return np.array(kept or largest[:count])


def embeddings(
    scored: ScoredRun,
    row: int | None = None,
    category: str = "",
    table: str = "",
    seed: int = 0,
) -> Picture:
    """Fig. 6: goods by their embeddings; shape: category; colour: one user's predicted CTR.

    Args:
      scored: the run.
      row: the sample whose user and context it is, counted from the split's first; by default a
        telling one.
      category: the ad field that groups the goods; by default the one that looks like it.
      table: draw the vectors of this embedding table alone; by default a good is v_A of Eq. 3, the
        vectors of all its ids that behaviours have too.
      seed: of t-SNE, and of the goods that are chosen in large categories.

    Raises:
      DinError: the data set or the model lacks what this figure shows.
    """
    goods, field = scored.goods(), scored.category(category)
    split = scored.store.split(scored.split)
    if row is not None and not 0 <= row < len(split):
        raise DinError(f"--row={row}: expected the row of a sample, 0 to {len(split) - 1:,}")
    sample = split[row] if row is not None else _user(scored)
    rows, samples, groups = goods_of_split(scored, field.name)
    shown = shown_categories(scored, sample, field.name, groups)
    rng = np.random.default_rng(seed)
    chosen = []
    for group in shown:
        members = np.flatnonzero(groups == group)
        kept = min(_GOODS, len(members))
        chosen.append(np.sort(rng.choice(members, kept, replace=False)))
    index = np.concatenate(chosen)
    if len(index) < 4:
        raise DinError(f"{scored.store.path}: {len(index)} goods are too few for t-SNE")
    fields = _drawn_fields(scored, table)
    vectors = [
        np.asarray(
            scored.state.tables[f.table][scored.store.column(f"fields/{f.name}")[samples[index]]]
        )
        for f in fields
    ]
    place = tsne(np.concatenate(vectors, axis=1), seed)
    ctr = scored.probabilities_of(np.full(len(index), sample), scored.ads_of(samples[index]))
    names = scored.titles(field.table).names(shown)
    limits = {"vmin": float(ctr.min()), "vmax": float(max(ctr.max(), ctr.min() + 1e-9))}
    with style():
        figure, axes = new_figure(size=(7.0, 4.6))
        ax = axes[0, 0]
        for group, marker, name in zip(shown, _MARKERS, names, strict=False):
            of = groups[index] == group
            points = ax.scatter(
                *place[of].T,
                c=ctr[of],
                cmap="cividis",
                marker=marker,
                s=34,
                edgecolors=GREY,
                linewidths=0.4,
                **limits,
            )
            ax.scatter([], [], marker=marker, color=BLACK, s=26, label=name[:28])
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        figure.colorbar(points, ax=ax, label="predicted CTR for one user", pad=0.01)
        figure.legend(loc="outside right center", title=field.name, fontsize=8)
    return Picture(
        "embeddings",
        "Embeddings of goods by t-SNE (Fig. 6)",
        figure,
        f"{len(index):,} {goods.name}s of {len(shown)} values of {field.name}: some that one user "
        f"visited, and the largest others. Goods lie close if their {_listed(fields)} are alike; "
        f"the shape is the {field.name}; the colour is the predicted CTR for the user of "
        f"sample {sample - split.start:,} of {scored.split}.",
        {"place": place, "ctr": ctr, "category": groups[index], "rows": rows[index]},
    )


def _drawn_fields(scored: ScoredRun, table: str) -> list[Field]:
    """The ad fields whose vectors are drawn: of one table, or those that behaviours have too."""
    compared = {f.ad for s in scored.schema.sequences for f in s.fields} or {scored.goods().name}
    ads = [f for f in scored.schema.fields if f.group == "ad" and not f.multi_hot]
    ads = [f for f in ads if f.table in scored.state.tables]
    ads = [f for f in ads if (f.table == table if table else f.name in compared)]
    if not ads:
        raise DinError(
            f"{scored.workdir}: the model has no embeddings of {table or 'goods'}; its tables are: "
            + (", ".join(scored.state.tables) or "none")
        )
    return ads


def _listed(fields: list[Field]) -> str:
    names = [f.name for f in fields]
    if len(names) == 1:
        return f"embeddings of {names[0]}"
    return f"embeddings of {', '.join(names[:-1])} and {names[-1]}, concatenated,"


def _user(scored: ScoredRun) -> int:
    """A sample of a user whose interests are plain to see: the first of `telling_samples`."""
    try:
        name = next(iter(scored.weights))
        return int(scored.samples[telling_samples(scored, name)[0]])
    except DinError:  # a model without activation weights
        return int(scored.samples[0])
