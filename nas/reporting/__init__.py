"""What a run looks like: curves, pictures of networks, heat maps of alpha, TensorBoard events, and the page of `nas report`."""
