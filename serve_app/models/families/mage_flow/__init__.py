"""Mage-Flow: its backbone, its autoencoder and its way to read texts."""
