"""Weights of other projects, made into checkpoints of vtok."""
