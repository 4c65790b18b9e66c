"""Metrics of a split: accuracy, agreement, few-shot accuracy."""
