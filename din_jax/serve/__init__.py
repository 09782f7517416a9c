"""Scores requests: the Scorer, and the server around it."""
