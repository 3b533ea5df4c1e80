"""Result files, and pictures of them."""
