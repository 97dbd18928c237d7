"""One clip: frames to codes to files and back, the only place that joins model, media and bytes."""
