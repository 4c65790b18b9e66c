"""Drawing of routing."""
