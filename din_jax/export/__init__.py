"""Exports a trained run as an artifact that scores by itself."""
