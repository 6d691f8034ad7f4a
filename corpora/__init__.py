"""Text the toolkit carries with it, so that a first training run needs no download."""
