"""Experiments over seeds, and the paper's tables."""
