"""Encode many videos: find items, encode each exactly once, and write files or shards."""
