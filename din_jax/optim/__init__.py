"""Optax transformations and the paper's regularisers."""
