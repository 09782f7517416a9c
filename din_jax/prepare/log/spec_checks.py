"""Checks of a spec that concern several of its sections."""

from __future__ import annotations

from din_jax.errors import DinError
from din_jax.prepare.log.spec import Column, Spec, is_share


def check_across_sections(spec: Spec, *, to_score: bool) -> None:
    """Checks that names are unique and that sections fit one another.

    Raises:
      DinError: two fields or sequences have one name; the label is a field; behaviours have a field
        that the ad lacks; something needs a user, an item or a time that the spec does not name; or
        behaviours without times meet a side table with `valid_from`.
    """
    _check_names(spec)
    _check_label(spec)
    _check_behavior_fields(spec)
    _check_needs(spec)
    _check_valid_from(spec)


def _check_needs(spec: Spec) -> None:
    """Raises if a section needs a user, an item or a time of the impressions that is not named."""
    impressions = spec.impressions
    needs: list[tuple[str, object, str]] = []
    for behaviors in spec.behaviors:
        section = f"[{behaviors.files.section}]"
        needs.append(("user", impressions.user, section))
        if behaviors.item is not None:
            needs.append(("item", impressions.item, f"the item of {section}"))
        if behaviors.time is not None:
            needs.append(("time", impressions.time, f"the time of {section}"))
    for history in spec.histories:
        if history.item is not None:
            needs.append(("item", impressions.item, f"the item of [{history.section}]"))
        if history.time is not None:
            needs.append(("time", impressions.time, f"the time of [{history.section}]"))
    for side_tables, key in ((spec.items, "item"), (spec.users, "user")):
        for side_table in side_tables:
            section = f"[{side_table.files.section}]"
            needs.append((key, getattr(impressions, key), section))
            if side_table.valid_from is not None:
                needs.append(("time", impressions.time, f"valid_from of {section}"))
    if spec.negatives is not None:
        needs += [
            ("user", impressions.user, "[negatives]"),
            ("item", impressions.item, "[negatives]"),
        ]
    if spec.split is not None:
        if spec.split.by in ("user", "last"):
            needs.append(("user", impressions.user, f'[split] by = "{spec.split.by}"'))
        if spec.split.by == "last" or not all(map(is_share, spec.split.starts.values())):
            needs.append(("time", impressions.time, "[split]"))
    for key, column, what in needs:
        if column is None:
            raise DinError(
                f"{spec.path}: [impressions] has no {key!r}, which {what} needs; expected the "
                "name of a column"
            )
    clicks = not spec.behaviors and not spec.histories
    for named, key in (
        (impressions.in_order, "[impressions] equal_times"),
        (spec.split is not None and spec.split.min_history, "[split] min_history"),
    ):
        if named and not (clicks and impressions.user and impressions.time):
            raise DinError(
                f"{spec.path}: {key} is for logs whose clicks are the behaviours, with a user and "
                "a time, and without [behaviours] and [history]. Remove it"
            )
    if not any([impressions.item, *impressions.fields.values()]):
        raise DinError(
            f"{spec.path}: [impressions] names nothing that a model could read; name the item, or "
            "columns in ad, context or profile"
        )


def _check_names(spec: Spec) -> None:
    owner = {"item": "the candidate itself", "user_id": "the user itself"}
    if not spec.behaviors and not spec.histories:
        owner["history"] = "the sequence of the clicked impressions"
    named = [(b.files.section, b.name) for b in spec.behaviors]
    for section, name in [*named, *((h.section, h.name) for h in spec.histories)]:
        if name in owner or not name.isidentifier():
            raise DinError(
                f"{spec.path}: [{section}]: {name!r} can't be a sequence's name: a field "
                "has it already, or it has other characters than letters, digits and _. Choose "
                "another one"
            )
        owner[name] = f"the sequence of [{section}]"

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
    for b in spec.behaviors:
        for column in b.extra:
            add(column, b.files.section)


def _check_label(spec: Spec) -> None:
    label = spec.impressions.label
    names = () if label is None else (label.column, label.impressions)
    for group in spec.impressions.fields.values():
        for column in group:
            if column.column in names:
                raise DinError(
                    f"{spec.path}: [impressions] has the label, {column.column!r}, as a field: "
                    "nothing would be left to predict. Remove it from the fields"
                )


def _check_behavior_fields(spec: Spec) -> None:
    """A behaviour's field is compared with the ad's field of the same name and table."""
    ad_columns = {c.name: c for c in spec.impressions.fields["ad"]}
    ad_columns |= {c.name: c for s in spec.items for c in s.columns}
    listed = [(h.section, h.ad, h.item) for h in spec.histories]
    for section, columns, item in [
        *((b.files.section, b.ad, b.item) for b in spec.behaviors),
        *listed,
    ]:
        for column in columns:
            if column.name not in ad_columns or ad_columns[column.name].table != column.table:
                raise DinError(
                    f"{spec.path}: [{section}] ad has {column.name!r}, but the ad has no field of "
                    "this name and table to compare it with, in [impressions] ad or [items]; "
                    f"its fields are: {', '.join(ad_columns) or 'none'}. What behaviours alone "
                    "have, such as their type, is in fields of [behaviours]"
                )
            if item is not None and any(
                column.name == c.name for s in spec.items for c in s.columns
            ):
                raise DinError(
                    f"{spec.path}: [{section}] ad has {column.name!r}, which [items] gives to its "
                    "items already; remove it from one of the two"
                )
    category = spec.negatives.category if spec.negatives else None
    if category is not None and category not in ad_columns:
        raise DinError(
            f"{spec.path}: [negatives] category = {category!r} is no field of the ad; its fields "
            f"are: {', '.join(ad_columns) or 'none'}"
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
