"""A page on this machine to ask trained models about pictures and to play with their routing."""
