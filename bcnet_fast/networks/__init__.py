"""The networks of BCNet, BMN and G-TAD: their specification, and versions for training and inference."""
