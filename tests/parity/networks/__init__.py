"""Networks beside ComfyUI's modules with the same small random weights: `cases`, their figures, and the test."""
