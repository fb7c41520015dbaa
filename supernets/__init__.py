"""DMaskingNAS: choose a network by gradient."""
