"""Training on windows of features with annotated instances."""
