"""The batching loop: sampler runs of many jobs share forwards, on one device. No nodes, no scheduler."""
