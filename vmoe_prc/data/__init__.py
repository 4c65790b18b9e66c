"""From data sets of TFDS to batches of NumPy arrays, and onto the devices."""
