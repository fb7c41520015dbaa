"""Tree regularisation (arXiv:1711.06178, document 002): networks that a small decision tree mimics."""
