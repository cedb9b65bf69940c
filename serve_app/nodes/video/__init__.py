"""Node classes of VIDEO, and the value that they hand on."""
