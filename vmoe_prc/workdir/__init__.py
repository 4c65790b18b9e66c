"""What lies in a work directory, and how it is written."""
