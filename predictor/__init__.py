"""NARS: choose a network and its recipe by prediction."""
