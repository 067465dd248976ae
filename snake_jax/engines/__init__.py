"""What carries out visits: compiled programs, batches, and how nodes are emulated."""
