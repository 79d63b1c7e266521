"""What every room stands on and no room is about: arrays, calls, files, ranks, progress."""
