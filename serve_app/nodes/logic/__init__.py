"""Node classes of control and numbers: switches, loops, arithmetic, and plain values."""
