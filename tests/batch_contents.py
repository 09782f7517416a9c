"""What batches hold, as plain Python values; and what they should, of the `rich` fixture."""

import numpy as np


def unpacked(batch):
    """The samples of a batch, padding left out."""
    size, samples = len(batch.label), []

    def of(packed, segment):
        return packed.values[packed.segment_ids == segment].tolist()

    for i in np.flatnonzero(batch.weight):
        sample = {"label": int(batch.label[i]), "user": int(batch.user[i])}
        for name, ids in batch.fields.items():
            sample[name] = of(ids, i) if hasattr(ids, "values") else int(ids[i])
        for name, sequence in batch.sequences.items():
            positions = np.flatnonzero(sequence.segment_ids == i)
            assert (sequence.segment_ids <= size).all()
            columns = sequence.fields | ({} if sequence.age is None else {"age": sequence.age})
            sample[name] = [
                {
                    field: of(ids, t) if hasattr(ids, "values") else int(ids[t])
                    for field, ids in columns.items()
                }
                for t in positions
            ]
        samples.append(sample)
    return samples


def expected(sample, max_history=0, *, ages=False):
    """What a batch should hold of a sample of the `rich` fixture."""
    result = {k: sample[k] for k in ("label", "user", "age", "film", "genres", "hour")}
    for name, fields in {"views": ("film", "genres"), "likes": ("film",)}.items():
        behaviors = sample[name][-max_history:] if max_history else sample[name]
        result[name] = [
            {field: e[field] for field in fields}
            | ({"age": bucket(sample["time"] - e["time"])} if ages else {})
            for e in behaviors
        ]
    return result


def bucket(age):
    """The logarithmic bucket of an age, in whole numbers."""
    return min((age + 1).bit_length() - 1, 31)
