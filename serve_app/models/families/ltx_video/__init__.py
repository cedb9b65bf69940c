"""LTX-Video 0.9: its backbone and its autoencoder."""
