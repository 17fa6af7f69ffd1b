"""Other arithmetic for the same networks, faster on a CPU."""
