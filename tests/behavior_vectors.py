"""The behaviours' vectors e_j of Eq. 3, from a store's columns and a state's tables, in NumPy."""

import numpy as np


def behavior_vectors(run, state, events, sequence="history"):
    """float64 [events, E]: the concatenated vectors of the fields, then of the numbers."""
    schema = run.store.schema
    described = next(s for s in schema.sequences if s.name == sequence)
    parts = []
    for field in described.fields:
        table = np.asarray(state.tables[field.table], np.float64)
        name = f"events/{sequence}/{field.name}"
        ids = run.store.column(name)
        if not field.multi_hot:
            parts.append(table[ids[events]])
            continue
        offsets = run.store.column(f"{name}.offsets").astype(int)
        lists = [ids[offsets[e] : offsets[e + 1]] for e in events]
        pool = np.mean if run.config.model.pooling == "mean" else np.sum
        zero = np.zeros(table.shape[1])
        parts.append(np.array([pool(table[one], axis=0) if len(one) else zero for one in lists]))
    for number in described.numbers:
        x = run.store.column(f"events/{sequence}/{number.name}")[events].astype(np.float64)
        of_number, of_missing = np.asarray(
            state.params["number_vectors"][f"of_{number.ad}"], np.float64
        )
        missing = np.isnan(x)
        x = np.where(missing, 0, x)
        parts.append(x[:, None] * of_number + missing[:, None] * of_missing)
    return np.concatenate(parts, axis=1)
