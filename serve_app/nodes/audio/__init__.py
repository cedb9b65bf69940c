"""Node classes that load, make, change and save AUDIO."""
