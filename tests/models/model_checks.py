"""A model's logits, interests and weights against its oracle."""

import numpy as np
from model_batches import REAL
from model_cases import close, oracle, results, setup


def assert_matches_the_oracle(name, seed):
    """In training and evaluation, with parameters and a batch of this seed."""
    samples, batch, variables = setup(name, seed)
    everything = results(name, variables, batch)
    for mode in "train", "eval":
        logits, aux = everything[mode]
        expected = oracle(name, samples, variables, train=mode == "train")
        assert logits.shape == (len(batch.label), 2)
        close(logits[:REAL], expected["logits"])
        interests = expected.get("interest", {})
        assert aux.get("interest", {}).keys() == interests.keys()
        for sequence, interest in interests.items():
            close(aux["interest"][sequence][:REAL], interest)
        assert ("activation_weights" in aux) == bool(expected.get("weights"))
        for sequence, of_samples in expected.get("weights", {}).items():
            flat = [w for of_sample in of_samples for w in of_sample]
            weights = aux["activation_weights"][sequence]
            close(weights[: len(flat)], flat)
            np.testing.assert_array_equal(weights[len(flat) :], 0)
            assert len(weights) == len(batch.sequences[sequence].segment_ids)
