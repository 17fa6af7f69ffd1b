"""MMDetection's Mask R-CNN, Cascade Mask R-CNN and Hybrid Task Cascade."""
