"""Networks that look at pictures, and their nodes, beside ComfyUI's with the same small random weights."""
