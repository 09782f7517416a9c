"""DIN on BARS' AmazonElectronics_x1, with those of its hyper-parameters that this model has.

    python -m din_jax.prepare bars --train train.csv --test test.csv --out data/bars-amazon
    python train.py --config configs/bars_amazon.py

THIS DATA SET HAS NO VALIDATION SPLIT: BARS selects on test, and so does this config. Its results
can be compared only with those that BARS publishes: for DIN gAUC 0.883526, AUC 0.886028, logloss
0.430190 (reczoo/BARS, ranking/ctr/DIN/DIN_amazonelectronics_x1/README.md, experiment 015 of
tuner_config_11). gAUC is `user_weighted_auc`: both weight a user by samples and skip users with one
class. This config has not yet been trained, because the data is not available.

From that experiment: D = 64, MLP 1024-512-256, activation unit 512-256, Dice, Adam 0.0005, batch
1024, the last 100 behaviours of a history. The experiment divides its learning rate by ten when
gAUC does not improve, according to its log after epoch 5; this config divides it then. The best
epoch was the eighth. BARS also has, and this model does not: a softmax over the activation weights,
dropout of 0.1 in both networks, batch normalisation, and L2 regularisation of 0.005 on the
embeddings.
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
