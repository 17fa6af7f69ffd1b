"""The competition's metric, what is true, and the score of a submission."""
