"""Raw data to a store: `python -m din_jax.prepare NAME --out DIR`."""
