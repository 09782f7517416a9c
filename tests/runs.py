"""Configs of short runs."""

from configs import quickstart


def small_config(store, **keys):
    config = quickstart.get_config()
    config.data.store = str(store)
    config.data.prepare = ""
    config.data.max_history = 4  # all batches are alike: few rungs, few compilations
    config.train.batch_size = 64
    config.train.epochs = 2
    config.update_from_flattened_dict(keys)
    return config
