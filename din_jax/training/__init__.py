"""Assembling, training and evaluating a run."""
