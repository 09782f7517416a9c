"""Stores with weights, and with the rows repeated that often."""

import copy
import dataclasses
import json
import shutil

import numpy as np

from din_jax.data.files import checksum, json_checksum


def with_weights(store, weights):
    """The store, of whose samples each has a weight."""
    other = store.with_columns({"samples/weight": np.asarray(weights, np.float32)})
    other.schema = dataclasses.replace(store.schema, weighted=True)
    return other


def with_rows_repeated(store, times):
    """The store with each sample `times` times, one after the other; fields have one id each."""
    other = copy.copy(store)
    other._columns = {
        name: column if name.startswith("events/") else np.repeat(column, times)
        for name, column in store._columns.items()
    }
    begins = np.cumsum([0, *times])
    other._splits = {name: [int(begins[i]) for i in s] for name, s in store._splits.items()}
    return other


def write_with_weights(path, store, weights):
    """Copies a store's folder to `path`, with weights."""
    shutil.copytree(store, path)
    np.save(path / "samples/weight.npy", np.asarray(weights, np.float32))
    description = json.loads((path / "schema.json").read_text())
    description["schema"]["weighted"], description["version"] = True, 2
    description["lengths"]["samples/weight"] = len(weights)
    description["fingerprint"] += "-weighted"
    description["files"]["samples/weight.npy"] = checksum(path / "samples/weight.npy")
    description["checksum"] = json_checksum(description)
    (path / "schema.json").write_text(json.dumps(description))
