"""From data sets of TFDS, by NumPy and OpenCV, to batches on the devices."""
