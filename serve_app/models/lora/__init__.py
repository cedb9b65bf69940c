"""LoRAs: their files, what they change, and forwards whose rows have different ones."""
