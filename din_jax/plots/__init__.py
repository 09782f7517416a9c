"""The figures of a trained run: python -m din_jax.plots. Needs Matplotlib (extra `plots`)."""
