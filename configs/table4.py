"""Table 4: the base model with each regulariser of section 6.5, on the industrial data set.

    python -m din_jax.prepare planted --shape industrial --out data/industrial
    python -m din_jax.report table4 --store data/industrial --seeds 5
    python -m din_jax.report table4 --store data/industrial --seeds 5 --protocol tuned

`--protocol paper` has section 6.5's hyper-parameters: dropout 0.5, the 3.3 % most frequent goods
(20 million of 0.6 billion), λ = 0.01. `--protocol tuned` gives every line five trials on
validation, of the learning rate if the line has no other hyper-parameter. The best of three epochs
is selected on validation. The paper's data is not public: its results (AUC 0.5940, 0.5959, 0.5970,
0.5983, 0.5954, 0.6031 in the order of the lines) are for other data. docs/results.md has times and
scores.
"""

from ml_collections import ConfigDict

from configs import table5

AGAINST = "without goods ids"
REFIT = False

_LINES = {
    "without goods ids": {"model.without": ("goods",)},
    "with goods ids": {},
    "with goods ids, dropout": {"regularizer.name": "dropout"},
    "with goods ids, filter": {
        "regularizer.name": "filter",
        "regularizer.filter_tables": ("goods",),
    },
    "with goods ids, DiFacto": {"regularizer.name": "difacto"},
    "with goods ids, MBA": {"regularizer.name": "mba"},
}
_PAPER = {
    "with goods ids, dropout": {"regularizer.dropout": 0.5},
    "with goods ids, filter": {"regularizer.keep": 0.033},
    "with goods ids, DiFacto": {"regularizer.rate": 0.01},
    "with goods ids, MBA": {"regularizer.rate": 0.01},
}
_TUNED = {
    "without goods ids": {"optimizer.learning_rate": table5.RATES},
    "with goods ids": {"optimizer.learning_rate": table5.RATES},
    "with goods ids, dropout": {"regularizer.dropout": table5.DROPOUTS},
    "with goods ids, filter": {"regularizer.keep": [0.01, 0.033, 0.1, 0.3, 0.6]},
    "with goods ids, DiFacto": {"regularizer.rate": [0.0001, 0.001, 0.01, 0.1, 1.0]},
    "with goods ids, MBA": {"regularizer.rate": table5.LAMBDAS},
}
PROTOCOLS = {
    "paper": {line: keys | _PAPER.get(line, {}) for line, keys in _LINES.items()},
    "tuned": {line: keys | _TUNED[line] for line, keys in _LINES.items()},
}
PUBLISHED: list = []


def get_config(argument: str = "paper:data/industrial") -> ConfigDict:
    """The config that the lines start from; the argument is PROTOCOL:STORE."""
    c = table5.get_config(argument)
    c.model.name = "base"
    c.model.activation = "prelu"
    return c
