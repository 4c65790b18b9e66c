"""Sparse mixture-of-experts vision transformers with Pairwise Router Consistency."""

import os

# Whoever imports TensorFlow first: no chatter about what its build could do elsewhere.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
