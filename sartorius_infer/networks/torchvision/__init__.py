"""Torchvision's Mask R-CNN."""
