"""Devices, processes, and the placement of arrays on them."""
