"""From video files to features: decoding, sampling, backbones, and the extraction that joins them."""
