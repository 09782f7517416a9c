"""The pure train and score steps."""
