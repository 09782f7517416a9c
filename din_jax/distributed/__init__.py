"""Devices and processes: what runs where."""
