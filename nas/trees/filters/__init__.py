"""Filter importance (document 004): trees over activation scores, pruning curves, narrower networks."""
