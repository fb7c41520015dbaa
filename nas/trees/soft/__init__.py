"""Soft decision trees (arXiv:1711.09784, document 003): trained on labels or distilled from a network."""
