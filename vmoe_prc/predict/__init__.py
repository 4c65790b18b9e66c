"""Trained models in use: classes, routing and representations of images."""
