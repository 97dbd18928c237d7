"""The model: tensors in, tensors out; no files, no console."""
