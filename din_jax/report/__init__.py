"""Runs experiments over several seeds, and reproduces the paper's tables."""
