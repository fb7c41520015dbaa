"""How a network is trained: recipes, data sets, the training loop."""
