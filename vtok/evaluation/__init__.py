"""Reconstruction quality: metrics, classic codecs for comparison, curves, pictures and reports."""
