"""Training of tokenizers and token learners."""
