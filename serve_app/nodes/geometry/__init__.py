"""The nodes of networks that estimate the depth and geometry of images, and what is drawn of it."""
