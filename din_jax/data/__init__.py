"""Reads a store on disk as packed batches."""
