"""Data sets that TFDS does not have; each module registers one in `DATASETS`."""
