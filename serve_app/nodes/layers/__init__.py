"""Node classes of layers on a canvas, and how a stack of layers is drawn."""
