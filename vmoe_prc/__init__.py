"""Sparse mixture-of-experts vision transformers with Pairwise Router Consistency."""
