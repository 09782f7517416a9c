import cross_oracles
import jax
import numpy as np
from compiling import quick_jit
from model_batches import LARGER, SCHEMA, SIZES, draw_samples, make_batch
from model_cases import config_of, model_of

from din_jax.models.registry import notes
from din_jax.optim.regularizer import drop_ids


def test_which_pairs_are_dropped_does_not_depend_on_padding():
    samples = draw_samples(np.random.default_rng(25), SCHEMA)
    model = model_of("wide_deep")

    @quick_jit
    def crosses(batch):
        lookups = {k: v for k, v in model.lookups(batch).items() if k.endswith("-cross")}
        return lookups, drop_ids(lookups, jax.random.key(27), 0.5)

    remaining = []
    for sizes in SIZES, LARGER:
        batch = make_batch(samples, SCHEMA, np.random.default_rng(26), sizes)
        lookups, dropped = crosses(batch)
        remaining.append(
            {
                name: dropped[table][name].mask[lookup.mask].tolist()
                for table, of_table in lookups.items()
                for name, lookup in of_table.items()
            }
        )
    assert remaining[0] == remaining[1]
    assert 0 < np.mean(remaining[0]["clicks.tags-cross"]) < 1


def test_shared_buckets_are_counted():
    """A cross of goods in 40 buckets against the pairs of these samples, one by one."""
    parts = [draw_samples(np.random.default_rng(seed), SCHEMA) for seed in range(5)]
    batches = [make_batch(part, SCHEMA, np.random.default_rng(22)) for part in parts]
    samples = [sample for part in parts for sample in part]
    pairs = {
        (b["goods"], s["fields"]["goods"])
        for s in samples
        for b in s["sequences"]["clicks"]
        if b["goods"] and s["fields"]["goods"]
    }
    buckets = [cross_oracles.bucket(v, a, 11, 40) for v, a in pairs]
    shared = sum(buckets.count(i) > 1 for i in buckets)
    assert shared > 0
    tags, shops, goods = notes(batches, SCHEMA, config_of("wide_deep"))
    assert tags == "clicks-tags-cross: every pair of ids has a weight of its own"
    assert shops == "visits-shop-cross: every pair of ids has a weight of its own"
    assert f"of {len(pairs)} distinct pairs" in goods
    assert f" {100 * shared / len(pairs):.1f} % share one of 40 buckets" in goods
