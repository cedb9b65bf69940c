"""The server's own files in the area `work`, which no client reads: states of runs, and results of nodes."""
