"""Where bytes and jobs live: output files, model files, and the job database. No torch, no Ray."""
