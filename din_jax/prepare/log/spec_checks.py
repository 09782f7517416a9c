"""Checks of a spec that concern several of its sections."""

from __future__ import annotations

from din_jax.errors import DinError
from din_jax.prepare.log.spec import Column, Spec


def check_across_sections(spec: Spec) -> None:
    """Checks that names are unique and that sections fit one another.

    Raises:
      DinError: two fields or sequences have one name; the label is a field; behaviours have a field
        that the ad lacks; or behaviours without times meet a side table with `valid_from`.
    """
    _check_names(spec)
    _check_label(spec)
    _check_behavior_fields(spec)
    _check_valid_from(spec)


def _check_names(spec: Spec) -> None:
    owner = {"item": "the candidate itself", "user_id": "the user itself"}
    if not spec.behaviors:
        owner["history"] = "the sequence of the clicked impressions"
    for behaviors in spec.behaviors:
        section = behaviors.files.section
        if behaviors.name in owner or not behaviors.name.isidentifier():
            raise DinError(
                f"{spec.path}: [{section}]: {behaviors.name!r} can't be a sequence's name: a field "
                "has it already, or it has other characters than letters, digits and _. Choose "
                "another one"
            )
        owner[behaviors.name] = f"the sequence of [{section}]"

    def add(column: Column, section: str) -> None:
        if column.name in owner:
            raise DinError(
                f"{spec.path}: [{section}] has a field {column.name!r}, a name that "
                f"{owner[column.name]} has already; give it another one: "
                f"NAME = {{column = {column.column!r}}}"
            )
        owner[column.name] = f"a field of [{section}]"

    for group in spec.impressions.fields.values():
        for column in group:
            add(column, "impressions")
    for side_table in (*spec.items, *spec.users):
        for column in side_table.columns:
            add(column, side_table.files.section)


def _check_label(spec: Spec) -> None:
    for group in spec.impressions.fields.values():
        for column in group:
            if column.column == spec.impressions.label:
                raise DinError(
                    f"{spec.path}: [impressions] has the label, {column.column!r}, as a field: "
                    "nothing would be left to predict. Remove it from the fields"
                )


def _check_behavior_fields(spec: Spec) -> None:
    """A behaviour's field is compared with the ad's field of the same name and table."""
    ad_columns = {c.name: c for c in spec.impressions.fields["ad"]}
    for behaviors in spec.behaviors:
        for column in behaviors.ad:
            if column.name not in ad_columns or ad_columns[column.name].table != column.table:
                raise DinError(
                    f"{spec.path}: [{behaviors.files.section}] ad has {column.name!r}, but "
                    "[impressions] has no ad column of this name and table to compare it with; "
                    f"its ad columns are: {', '.join(ad_columns) or 'none'}"
                )


def _check_valid_from(spec: Spec) -> None:
    versioned = next((s for s in spec.items if s.valid_from), None)
    for behaviors in spec.behaviors:
        if behaviors.time is None and versioned is not None:
            raise DinError(
                f"{spec.path}: [{versioned.files.section}] has valid_from, but the behaviours of "
                f"[{behaviors.files.section}] have no time to join it at; name their time, or "
                "remove valid_from and leave one row per item"
            )
