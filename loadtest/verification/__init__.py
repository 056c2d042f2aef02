"""What agents must hold in the end, and whether they do."""
