"""From a training checkpoint to a directory that other libraries load."""
