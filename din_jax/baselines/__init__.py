"""Simple baselines, fitted in seconds: what a model has to be better than."""
