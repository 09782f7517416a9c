"""The Deep Interest Network (Zhou et al., KDD 2018, arXiv 1706.06978) in JAX and Flax."""

__version__ = "0.1.0"
