"""Training: clips to learn from, optimizers, the loop."""
