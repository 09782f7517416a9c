"""Checkpoints of a run: saving, restoring and compatibility checks."""
