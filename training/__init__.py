"""Training of the checkpoints that `sartorius_infer` runs: a recipe and annotated images in, weights out."""
