"""What lwc's code for NVIDIA GPUs computes, and how long it takes, beside PyTorch: `make gpu-prepare`, `make gpu`."""
