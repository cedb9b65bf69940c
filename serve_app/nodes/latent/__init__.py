"""Node classes that make, change, decode, save and load LATENT."""
