"""Videos coded and decoded again to see what is lost: numbers, curves and pictures."""
