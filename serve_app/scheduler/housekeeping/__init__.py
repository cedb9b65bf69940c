"""Work in the background: retention, sweeps, counting of bytes."""
