"""What nodes are: figures, who holds what, simulated time."""
