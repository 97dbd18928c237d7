"""How good a reconstruction is, in numbers and in pictures."""
