"""One video: frames to codes to files and back. Joins `models`, `video` and `codefile`."""
