"""Reading checkpoints; nothing in them ever runs."""
