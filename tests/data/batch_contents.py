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
            sample[name] = [
                {
                    field: of(ids, t) if hasattr(ids, "values") else int(ids[t])
                    for field, ids in sequence.fields.items()
                }
                for t in positions
            ]
        samples.append(sample)
    return samples


def expected(sample, max_history=0):
    """What a batch should hold of a sample of the `rich` fixture."""
    keys = ("label", "user", "age", "film", "genres", "hour")
    views = sample["views"][-max_history:] if max_history else sample["views"]
    likes = sample["likes"][-max_history:] if max_history else sample["likes"]
    return {k: sample[k] for k in keys} | {
        "views": views,
        "likes": [{"film": e["film"]} for e in likes],
    }
