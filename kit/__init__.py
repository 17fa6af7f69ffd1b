"""What packs the project for Kaggle; never shipped itself."""
