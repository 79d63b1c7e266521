"""What all other folders use, and none is about: arrays, calls, files, ranks, progress."""
