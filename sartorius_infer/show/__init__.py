"""Pictures of what was found: one page, and what it is drawn from."""
