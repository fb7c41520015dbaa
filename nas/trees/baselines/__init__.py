"""Decision trees on a network's features: the baselines of thesis Table 5.2."""
