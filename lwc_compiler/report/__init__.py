"""What was done to a model, layer by layer: the paper's table, sizes, and lowering's decisions."""
