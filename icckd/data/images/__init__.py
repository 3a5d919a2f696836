"""Image files: opened (`image_file`), as a picture of 8 bits (`pixels`) or deeper (`deep_pixels`), many as one tensor
(`decoding`)."""
