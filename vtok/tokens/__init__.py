"""Learned tokens: a few float vectors per latent step, and code files of their bits."""

from vtok.pipeline import register

ORIGIN_KEY = "token_learner"
"""Metadata key of code files of quantized tokens; its value is the token pipeline as JSON."""

register("vtok.tokens.file:EXTENSION", ORIGIN_KEY)
