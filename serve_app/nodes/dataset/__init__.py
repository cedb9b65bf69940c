"""Node classes that load, prepare and save datasets for training."""
