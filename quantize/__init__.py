"""From float to fewer bits: ranges, scales and the passes that apply them."""
