"""Sparse mixture-of-experts vision transformers with Pairwise Router Consistency."""

__version__ = "0.1.0"
