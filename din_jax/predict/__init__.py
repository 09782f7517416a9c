"""Scores rows of raw values: `python -m din_jax.predict`."""
