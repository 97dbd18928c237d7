"""Checkpoints, device and dtype selection, and importers of foreign weights."""
