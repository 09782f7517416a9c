"""Layers, embedding tables and losses."""
