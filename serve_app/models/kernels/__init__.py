"""Operations written for one device: packed and Winograd layers for a CPU, CUDA graphs for a GPU."""
