"""What moves W and H, and what a run leaves behind."""
