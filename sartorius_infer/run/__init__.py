"""One whole run over any number of images."""
