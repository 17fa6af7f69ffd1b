"""From soft masks to a label map, and from there to runs of pixels."""
