"""The tables of a spec, split and joined: samples with their features and histories."""

from __future__ import annotations

import numpy as np
import polars as pl

from din_jax.data.id_lookup import distinct, index_in
from din_jax.data.store import SPLITS
from din_jax.errors import DinError
from din_jax.prepare.log import drawn_negatives
from din_jax.prepare.log.features import (
    BehaviorSequence,
    Feature,
    behavior_sequence,
    by_user_and_time,
    joined_features,
    listed_sequence,
    own_features,
)
from din_jax.prepare.log.spec import Behaviors, ListedHistory, Spec
from din_jax.prepare.log.splits import order_in_time, split_impressions
from din_jax.prepare.log.tables import Tables
from din_jax.prepare.log.times import in_seconds, time_unit
from din_jax.prepare.log.value_types import unify


class JoinedLog:
    """The samples of a log.

    Samples are sorted by split, then by time, then as in the files; drawn negatives follow their
    positive. Users are numbered in this order, so that no number in training depends on the other
    splits.

    Attributes:
      counts: {section: {what is counted: rows}}.
      notes: of what is not an error but may be a mistake.
      splits: {split: its samples}.
      label: UInt8 [samples], 0 or 1; null where a sample has none.
      weight: float [samples], or None.
      user: [samples]; where the log has no users each sample is a user of its own.
      time: int64 [samples], in seconds; None if no sequence has times.
      users, items: the raw ids.
      fields: {group of the schema: {field: feature of the samples}}.
      sequences: by name.
      negatives: how negatives were drawn, or None.
      titles: [(ids, titles)] of items, see `Tables`.
      place: int64 [samples], ".place" of the impressions where their frame has it, or None.
    """

    def __init__(self, spec: Spec, seed: int, tables: Tables):
        self.spec = spec
        self._frames, self.counts, self.notes = tables.frames, tables.counts, tables.notes
        self.titles = tables.titles
        self._unit = time_unit(spec, self._frames, self.notes)
        samples = self._samples(seed)
        rows = len(samples)
        unlabelled = pl.Series([None], dtype=pl.UInt8).new_from_index(0, rows)
        self.label = samples[".label"] if ".label" in samples.columns else unlabelled
        self.weight = samples[".weight"].to_numpy() if ".weight" in samples.columns else None
        self.time = None if self._unit is None else in_seconds(samples[".time"], self._unit)
        has_place = ".place" in samples.columns
        self.place = samples[".place"].to_numpy().astype(np.int64) if has_place else None
        self.user, self.users = np.arange(rows), pl.Series([], dtype=pl.Int64)
        if spec.impressions.user is not None:
            self.users = samples[".user"].unique(maintain_order=True)
            self.user = index_in(self.users, samples[".user"])
        self.items = self._all_items(samples)
        self.fields = {
            "user": self._user_features(samples),
            "ad": self._ad_features(samples, own_features(spec.impressions.fields["ad"], samples)),
            "context": own_features(spec.impressions.fields["context"], samples),
        }
        self.sequences: dict[str, BehaviorSequence] = {}
        for history in spec.histories:
            self.sequences[history.name] = self._listed(history, samples)
        for behaviors in spec.behaviors:
            self.sequences[behaviors.name] = self._behaviors(behaviors, samples)
        if not self.sequences and self._clicks_are_behaviors(samples):
            self.sequences["history"] = self._clicks()
        if all(sequence.time is None for sequence in self.sequences.values()):
            self.time = None
        for behaviors in spec.behaviors:
            # What behaviours alone have is compared with an ad's field that is always unknown.
            for column in behaviors.extra:
                feature = self.sequences[behaviors.name].features[column.name]
                self.fields["ad"][column.name] = feature._replace(value_index=np.full(rows, -1))

    def _samples(self, seed: int) -> pl.DataFrame:
        """The impressions in a split, or the positives in one and their negatives."""
        rows, spec = self._frames["impressions"], self.spec
        counts = self.counts["impressions"]
        if spec.negatives is not None:
            positives = rows.filter(pl.col(".label") == 1)
            counts["not positive"] = len(rows) - len(positives)
            if not len(positives):
                raise DinError(
                    f"{spec.path}: no row of [impressions] is positive, so that [negatives] has "
                    "nothing to draw for; check the label, or remove it if each row is something "
                    "that a user took"
                )
            rows = positives
        split = split_impressions(spec, rows, seed, self.notes, self._unit)
        counts["in no split"] = len(rows) - len(split.rows)
        if spec.split is not None and spec.split.min_history:
            counts["with too short a history"] = len(split.rows) - len(split.samples)
        self._rows, self._row_of_sample = split.rows, split.samples
        self.splits = split.slices
        self.negatives: dict[str, object] | None = None
        whole = len(split.samples) == len(split.rows)
        samples = split.rows if whole else split.rows[split.samples]
        if spec.negatives is not None:
            drawn = drawn_negatives.draw(spec, samples, self.splits, self._frames, seed, self.notes)
            self.splits, self.negatives = drawn.splits, drawn.origin
            self._row_of_sample = np.repeat(split.samples, 1 + spec.negatives.per_positive)
            samples = drawn.frame
        return samples

    def _all_items(self, samples: pl.DataFrame) -> pl.Series:
        """The distinct ids of all items: of samples, then of the behaviours."""
        frames = [
            samples,
            self._rows,
            *(self._frames[b.files.section] for b in self.spec.behaviors),
        ]
        ids = [frame[".item"] for frame in frames if ".item" in frame.columns]
        listed = [samples[f".{h.name}.item"] for h in self.spec.histories if h.item is not None]
        ids += [lists.explode().drop_nulls().alias(".item") for lists in listed]
        if not ids:
            return pl.Series(".item", [], dtype=pl.Int64)
        return distinct(unify(ids))

    def check_labels(self) -> None:
        """Raises if a sample of training has no label.

        Raises:
          DinError: it says how many have none.
        """
        train = self.label[self.splits["train"]]
        if missing := train.null_count():
            label = self.spec.impressions.label
            first = int(train.is_null().arg_max() or 0)
            of_user = f", the first of user {self.users[int(self.user[first])]!r}"
            raise DinError(
                f"{self.spec.path}: {missing:,} of {len(train):,} samples of train have no label, "
                f"{label.column if label else 'none is named'!r} is empty"
                f"{of_user if len(self.users) else ''}: nothing can be learned from them. Leave "
                "the rows out, or give them to test; rows to score alone are prepared with --like"
            )

    def all_fields(self) -> dict[str, Feature]:
        """The features of the samples, of all groups."""
        return {name: f for group in self.fields.values() for name, f in group.items()}

    def join_rates(self) -> dict[str, dict[str, float]]:
        """{section of a side table: {"samples" or a sequence: fraction of entries that joined}}."""
        rates: dict[str, dict[str, float]] = {}
        for group, side_tables in (("ad", self.spec.items), ("user", self.spec.users)):
            for side_table in side_tables:
                if not side_table.columns:
                    continue  # it has titles alone
                name = side_table.columns[0].name  # all columns of a table are joined together
                joined = {"samples": self.fields[group][name]}
                if group == "ad":
                    sequences = self.sequences.items()
                    joined |= {s: of.features[name] for s, of in sequences if name in of.features}
                rates[side_table.files.section] = {
                    what: round(float((feature.value_index >= 0).mean()), 6)
                    for what, feature in joined.items()
                    if len(feature.value_index)
                }
        return rates

    def _ad_features(self, frame: pl.DataFrame, own: dict[str, Feature]) -> dict[str, Feature]:
        """The ad's fields of samples or behaviours: the item, of side tables, then its own."""
        if ".item" not in frame.columns:
            return own
        item = index_in(self.items, frame[".item"].cast(self.items.dtype))
        features = {"item": Feature("item", self.items, item)}
        for side_table in self.spec.items:
            table = self._frames[side_table.files.section]
            features |= joined_features(
                side_table,
                table,
                ".item",
                self.items,
                item,
                frame,
                must_meet=not self.spec.to_score,
            )
        return features | own

    def _user_features(self, samples: pl.DataFrame) -> dict[str, Feature]:
        features: dict[str, Feature] = {}
        if self.spec.impressions.user is not None:
            features["user_id"] = Feature("user", self.users, self.user)
        features |= own_features(self.spec.impressions.fields["user"], samples)
        for side_table in self.spec.users:
            table = self._frames[side_table.files.section]
            features |= joined_features(
                side_table,
                table,
                ".user",
                self.users,
                self.user,
                samples,
                must_meet=not self.spec.to_score,
            )
        return features

    def _behaviors(self, behaviors: Behaviors, samples: pl.DataFrame) -> BehaviorSequence:
        """The sequence of a table of behaviours."""
        section = behaviors.files.section
        frame = self._frames[section]
        numbered = frame.with_columns(pl.Series(".user", index_in(self.users, frame[".user"])))
        order: list[str] = [c for c in (".user", ".time", ".order") if c in frame.columns]
        events = by_user_and_time(numbered, order)
        self.counts[section]["of users without impressions"] = len(frame) - len(events)
        own = own_features((*behaviors.ad, *behaviors.extra), events)
        features = self._ad_features(events, own)
        return behavior_sequence(features, events, samples, self.user, self._unit)

    def _listed(self, history: ListedHistory, samples: pl.DataFrame) -> BehaviorSequence:
        """The sequence of lists in the samples' own rows."""
        names = {c.name: f".{history.name}.{c.name}" for c in history.ad}
        if history.item is not None:
            names[".item"] = f".{history.name}.item"
        if history.time is not None:
            names[".time"] = f".{history.name}.time"
        lists = samples.select(pl.col(column).alias(name) for name, column in names.items())
        time = samples[".time"] if ".time" in samples.columns else None
        listed = listed_sequence(lists, time, history.newest_first)
        events, start, end, without_item, later = listed
        if without_item:
            self.counts["impressions"][f"behaviours in {history.name} without item"] = without_item
        if history.time is not None:
            self.counts["impressions"][f"behaviours in {history.name} not before the row"] = later
        features = self._ad_features(events, own_features(history.ad, events))
        known = history.time is not None and self._unit is not None
        seconds = in_seconds(events[".time"], self._unit) if known and self._unit else None
        return BehaviorSequence(features, len(events), start, end, seconds)

    def _clicks_are_behaviors(self, samples: pl.DataFrame) -> bool:
        """Whether clicked impressions can be behaviours; a note says why not."""
        impressions = self.spec.impressions
        missing = [
            key
            for key, there in (
                ("user", impressions.user),
                ("time", impressions.time),
                (
                    "item or a column in ad",
                    impressions.item or impressions.fields["ad"] or self.spec.items,
                ),
            )
            if not there
        ]
        if missing:
            self.notes.append(
                f"[impressions] names no {' and no '.join(missing)}, so that samples have no "
                "history: train lr, base, wide_deep, pnn or deepfm; din needs histories"
            )
        return not missing and ".label" in samples.columns

    def _clicks(self) -> BehaviorSequence:
        """The sequence of the clicked impressions."""
        rows = self._rows.with_columns(
            pl.Series(".user", index_in(self.users, self._rows[".user"]))
        )
        events = rows.with_row_index(".row").filter(
            (pl.col(".label") == 1) & (pl.col(".user") >= 0)
        )
        events = events.sort(".user", ".time", maintain_order=True)
        own = own_features(self.spec.impressions.fields["ad"], events)
        features = self._ad_features(events, own)
        of_sample = rows[self._row_of_sample]
        clicks = behavior_sequence(features, events, of_sample, self.user, self._unit)
        if self.spec.impressions.in_order:
            place = order_in_time(rows)
            end = np.searchsorted(place[events[".row"].to_numpy()], place[self._row_of_sample])
            clicks = clicks._replace(end=np.maximum(end, clicks.start))
        self._check_clicks(clicks, events[".split"].to_numpy())
        return clicks

    def _check_clicks(self, clicks: BehaviorSequence, split: np.ndarray) -> None:
        """Raises if a history has a click of a later split, and with it that sample's label.

        Splits by column, and random ones, need not follow one another in time.
        """
        for number, name in enumerate(SPLITS[:-1]):
            samples = self.splits[name]
            later_clicks = np.concatenate([[0], np.cumsum(split > number)])
            leaks = later_clicks[clicks.end[samples]] > later_clicks[clicks.start[samples]]
            if leaks.any():
                user = self.users[int(self.user[samples][np.argmax(leaks)])]
                raise DinError(
                    f"{self.spec.path}: {leaks.sum():,} samples of the split {name}, of user "
                    f"{user!r} for instance, come after clicks of the same user that [split] puts "
                    "in a later split; their histories would contain those clicks and reveal the "
                    "labels. Split by time or by user, or give the behaviours a table of their "
                    "own, [behaviours]"
                )
