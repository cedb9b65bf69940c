"""SAM 3.1, which finds things that a text names in images, and follows them through videos."""
