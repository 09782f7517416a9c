"""The samples of a store as requests of raw values, against its batches."""

import numpy as np

from din_jax.data.packing import Packed, Packer
from din_jax.data.transform import Transform
from din_jax.export.encoding import Encoder

UNKNOWN = "an id that no data has"


def raw_request(store, sample):
    """The arguments of `Encoder.user`, and those of `Encoder.ads`, by the vocabularies alone."""
    schema = store.schema
    ids = {t.name: store.vocabulary(t.name).ids.to_list() for t in schema.tables}

    def raw(field, name, entry):
        column = store.column(name)
        if not field.multi_hot:
            row = int(column[entry])
            return ids[field.table][row] if row else UNKNOWN
        offsets = store.column(f"{name}.offsets")
        rows = column[int(offsets[entry]) : int(offsets[entry + 1])].tolist()
        return [ids[field.table][row] if row else UNKNOWN for row in rows]

    fields = {"user": {}, "context": {}, "ad": {}}
    for field in schema.fields:
        fields[field.group][field.name] = raw(field, f"fields/{field.name}", sample)
    behaviors = {}
    for sequence in schema.sequences:
        name = sequence.name
        start, end = (int(store.column(f"sequences/{name}.{e}")[sample]) for e in ("start", "end"))
        rows = []
        for event in range(start, end):
            row = {f.name: raw(f, f"events/{name}/{f.name}", event) for f in sequence.fields}
            if sequence.times:
                row["time"] = int(store.column(f"events/{name}.time")[event])
            rows.append(row)
        behaviors[name] = rows
    time = None
    if any(s.times for s in schema.sequences):
        time = int(store.column("samples/time")[sample])
    return (fields["user"], behaviors, fields["context"], time), [fields["ad"]]


def assert_requests_are_batches(store, samples, max_history=3):
    """Each sample, as raw values through the transform, has the arrays of its packed batch."""
    schema = store.schema
    ages = bool(schema.sequences) and all(s.times for s in schema.sequences)
    encoder = Encoder(Transform.of_store(store), schema, max_history, ages=ages)
    packer = Packer(store, max_history, ages=ages)
    longest = 0
    for sample in samples:
        user, candidates = raw_request(store, sample)
        encoded, ads = encoder.user(*user), encoder.ads(candidates)
        one = np.array([sample])
        lengths = dict(zip(packer.axes, packer.lengths(one)[0].tolist(), strict=True))
        (batch,) = packer.pack([one], 1, [lengths])
        for field in schema.fields:
            expected = batch.fields[field.name]
            of_ad = field.group == "ad"
            found = (ads if of_ad else encoded).arrays
            found = found[field.name] if of_ad else found["fields"][field.name]
            if isinstance(expected, Packed):
                values = found["values"][0] if of_ad else found["values"]
                np.testing.assert_array_equal(values, expected.values)
            else:
                assert np.ravel(found).tolist() == expected.tolist()
        for name, behaviors in batch.sequences.items():
            found = encoded.arrays["sequences"][name]
            assert found["mask"].sum() == len(behaviors.segment_ids)
            if ages:
                np.testing.assert_array_equal(found["age"], behaviors.age)
            for field, expected in behaviors.fields.items():
                ids = found["fields"][field]
                if isinstance(expected, Packed):
                    np.testing.assert_array_equal(ids["segment_ids"], expected.segment_ids)
                    ids, expected = ids["values"], expected.values
                np.testing.assert_array_equal(ids, expected)
            longest = max(longest, len(behaviors.segment_ids))
    assert longest > 1
