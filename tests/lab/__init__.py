"""The laboratory: what it says of targets that are known, and of targets that lie."""
