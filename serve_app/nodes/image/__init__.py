"""Node classes that load, change, join and save IMAGE. Layers on a canvas are in `nodes/layers`."""
