"""Preprocessing of one example: `op|op(args)`."""
