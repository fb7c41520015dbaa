"""Trees that explain networks: NBDT (thesis, chapter 5) here; baselines, soft trees, regularisation and filters in folders."""
