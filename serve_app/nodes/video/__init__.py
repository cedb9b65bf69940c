"""Node classes of video models, of VIDEO, and the value that these hand on."""
