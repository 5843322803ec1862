"""dartslight: search a neural architecture for your images, decide it with a method you can trust, and train it."""

__version__ = "0.1.0"
