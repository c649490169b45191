"""Videos: what is in a file, when each frame is shown, decoding chosen frames, frame folders."""
