"""The tables of a spec, split and joined: samples with their features and histories."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl

from din_jax.data.store import SPLITS
from din_jax.errors import DinError
from din_jax.prepare.log.features import (
    BehaviorSequence,
    Feature,
    behavior_sequence,
    index_in,
    joined_features,
    own_features,
)
from din_jax.prepare.log.spec import Behaviors, Spec
from din_jax.prepare.log.splits import split_impressions
from din_jax.prepare.log.tables import Tables
from din_jax.prepare.log.times import in_seconds, time_unit


class JoinedLog:
    """The samples of a log.

    Samples are sorted by split, then by time, then as in the files. Users are numbered in this
    order, so that no number in training depends on the other splits.

    Attributes:
      counts: {section: {what is counted: rows}}.
      notes: of what is not an error but may be a mistake.
      splits: {split: its samples}.
      label, user: [samples].
      time: int64 [samples], in seconds; None if no sequence has times.
      users, items: the raw ids.
      fields: {group of the schema: {field: feature of the samples}}.
      sequences: by name.
    """

    def __init__(self, spec: Spec, seed: int):
        self.spec = spec
        tables = Tables(spec)
        self._frames, self.counts, self.notes = tables.frames, tables.counts, tables.notes

        impressions = self._frames["impressions"]
        samples, self.splits = split_impressions(spec, impressions, seed)
        self.counts["impressions"]["in no split"] = len(impressions) - len(samples)
        self.label = samples[".label"].to_numpy()
        self._unit = time_unit(spec, self._frames, self.notes)
        self.time = None if self._unit is None else in_seconds(samples[".time"], self._unit)
        self.users = samples[".user"].unique(maintain_order=True)
        self.user = index_in(self.users, samples[".user"])
        with_items = [samples, *(self._frames[b.files.section] for b in spec.behaviors)]
        self.items = pl.concat([frame[".item"] for frame in with_items]).unique(maintain_order=True)

        columns = spec.impressions.fields
        self.fields = {
            "user": {
                "user_id": Feature("user", self.users, self.user),
                **own_features(columns["user"], samples),
                **self._user_features(samples),
            },
            "ad": {**self._item_features(samples), **own_features(columns["ad"], samples)},
            "context": own_features(columns["context"], samples),
        }
        self.sequences: dict[str, BehaviorSequence] = {}
        if not spec.behaviors:
            self.sequences["history"] = self._clicks(samples)
        for behaviors in spec.behaviors:
            self.sequences[behaviors.name] = self._behaviors(behaviors, samples)

    def all_fields(self) -> dict[str, Feature]:
        """The features of the samples, of all groups."""
        return {name: f for group in self.fields.values() for name, f in group.items()}

    def join_rates(self) -> dict[str, dict[str, float]]:
        """{section of a side table: {"samples" or a sequence: fraction of entries that joined}}."""
        rates: dict[str, dict[str, float]] = {}
        for group, side_tables in (("ad", self.spec.items), ("user", self.spec.users)):
            for side_table in side_tables:
                name = side_table.columns[0].name  # all columns of a table are joined together
                joined = {"samples": self.fields[group][name]}
                if group == "ad":
                    joined |= {s: of.features[name] for s, of in self.sequences.items()}
                rates[side_table.files.section] = {
                    what: round(float((feature.value_index >= 0).mean()), 6)
                    for what, feature in joined.items()
                    if len(feature.value_index)
                }
        return rates

    def _item_features(self, frame: pl.DataFrame) -> dict[str, Feature]:
        item = index_in(self.items, frame[".item"])
        features = {"item": Feature("item", self.items, item)}
        for side_table in self.spec.items:
            table = self._frames[side_table.files.section]
            features |= joined_features(side_table, table, ".item", self.items, item, frame)
        return features

    def _user_features(self, samples: pl.DataFrame) -> dict[str, Feature]:
        features: dict[str, Feature] = {}
        for side_table in self.spec.users:
            table = self._frames[side_table.files.section]
            features |= joined_features(side_table, table, ".user", self.users, self.user, samples)
        return features

    def _behaviors(self, behaviors: Behaviors, samples: pl.DataFrame) -> BehaviorSequence:
        """The sequence of a table of behaviours."""
        section = behaviors.files.section
        frame = self._frames[section]
        numbered = frame.with_columns(pl.Series(".user", index_in(self.users, frame[".user"])))
        events = numbered.filter(pl.col(".user") >= 0)
        self.counts[section]["of users without impressions"] = len(frame) - len(events)
        order = [c for c in (".user", ".time", ".order") if c in events.columns]
        events = events.sort(order, maintain_order=True)
        features = self._item_features(events) | own_features(behaviors.ad, events)
        return behavior_sequence(features, events, samples, self.user, self._unit)

    def _clicks(self, samples: pl.DataFrame) -> BehaviorSequence:
        """The sequence of the clicked impressions."""
        events = (
            samples.select(".time", ".label", pl.Series(".user", self.user))
            .with_row_index(".sample")
            .filter(pl.col(".label") == 1)
            .sort(".user", ".time", maintain_order=True)
        )
        sample = events[".sample"].to_numpy()
        features = {
            name: feature._replace(value_index=feature.value_index[sample])
            for name, feature in self.fields["ad"].items()
        }
        clicks = behavior_sequence(features, events, samples, self.user, self._unit)
        self._check_clicks(clicks, sample)
        return clicks

    def _check_clicks(self, clicks: BehaviorSequence, sample: np.ndarray) -> None:
        """Raises if a history has a click of a later split, and with it that sample's label.

        Splits by column need not follow one another in time.
        """
        for name, later in itertools.pairwise(SPLITS):
            samples = self.splits[name]
            later_clicks = np.concatenate([[0], np.cumsum(sample >= self.splits[later].start)])
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
