"""What a replica knows of the others: where they are, how fresh they are, and when its clients are better off there."""
