"""The models, one a file; `registry` has them by name."""
