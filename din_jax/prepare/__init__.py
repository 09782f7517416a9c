"""Turns raw data into a store: `python -m din_jax.prepare NAME --out DIR`."""
