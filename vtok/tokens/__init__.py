"""Learned tokens: a few float vectors per latent step, their files and their models."""
