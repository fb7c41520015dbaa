"""What a network can be: architectures, variables, cost, modules."""
