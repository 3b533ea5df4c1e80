"""From a network's scores to ranked proposals."""
