"""HunyuanVideo 1 and 1.5: its backbone, text encoders and autoencoders."""
