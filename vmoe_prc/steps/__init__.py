"""Pure functions over the training state, which are jitted."""
