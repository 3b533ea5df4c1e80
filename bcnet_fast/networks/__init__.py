"""The networks of BCNet, BMN and G-TAD: as specification, for training, for inference."""
