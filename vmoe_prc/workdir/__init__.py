"""Files of a work directory: their layout, atomic writes, locks, metrics."""
