"""What is measured, against what. Not shipped."""
