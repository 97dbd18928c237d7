"""Single-file HTML report of originals, reconstructions and measurements."""
