"""The configs that `test_model_training` does not train, in larger capacities."""

import pytest
from model_cases import SCORED
from model_checks import assert_matches_the_oracle


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("seed", range(2))
def test_models_match_the_oracle(name, seed):
    assert_matches_the_oracle(name, seed)
