"""The objects of an image, through QuPath's own classes: the only modules that start Java."""
