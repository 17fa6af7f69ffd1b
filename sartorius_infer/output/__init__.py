"""What is written: rows, soft predictions, pictures."""
