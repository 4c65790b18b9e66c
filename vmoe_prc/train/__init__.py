"""Training: builds a program from a configuration and runs its steps."""
