"""The models, one per file; `registry` builds them by name."""
