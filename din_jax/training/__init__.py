"""A run: assembled, trained, evaluated."""
