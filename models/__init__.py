"""What the network is: one file per paper, its tables row for row."""
