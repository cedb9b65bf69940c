"""The nodes that find objects and people's poses in images, and draw poses."""
