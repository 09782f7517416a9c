"""Optax transformations and regularisers of the paper."""
