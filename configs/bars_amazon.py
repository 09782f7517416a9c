"""DIN on BARS' AmazonElectronics_x1, with its hyper-parameters as far as this model has them.

    python -m din_jax.prepare bars --train train.csv --test test.csv --out data/bars-amazon
    python train.py --config configs/bars_amazon.py

BARS HAS NO VALIDATION SPLIT HERE: it selects on test, and so does this. Figures are comparable with
those that BARS publishes and with nothing else. It publishes for DIN gAUC 0.883526, AUC 0.886028,
logloss 0.430190 (reczoo/BARS, ranking/ctr/DIN/DIN_amazonelectronics_x1/README.md, experiment 015 of
tuner_config_11); gAUC is `user_weighted_auc` here: both
weight a user by samples and skip users of one class. Not yet trained here: the data can't be had.

Taken from that experiment: D = 64, MLP 1024-512-256, activation unit 512-256, Dice, Adam 0.0005,
batch 1024, histories cut to the last 100. The experiment's learning rate falls to a tenth when
gAUC does not rise, which its log shows after epoch 5; here it falls then. The best epoch was the
eighth. What BARS has and this model has not: a softmax over the activation weights, dropout of 0.1
in both networks, batch normalisation, and an L2 regulariser of 0.005 on the embeddings.
"""

from ml_collections import ConfigDict

from din_jax.config import default_config

_TRAIN_SAMPLES = 2_608_764


def get_config() -> ConfigDict:
    """The config of this experiment."""
    c = default_config()
    c.data.store = "data/bars-amazon"
    c.data.max_history = 100
    c.model.embedding_dim = 64
    c.model.hidden = (1024, 512, 256)
    c.model.attention.hidden = (512, 256)
    c.optimizer.learning_rate = 0.0005
    c.optimizer.decay_rate = 0.1
    c.optimizer.decay_samples = 5 * _TRAIN_SAMPLES
    c.optimizer.staircase = True
    c.train.batch_size = 1024
    c.train.epochs = 9
    return c
