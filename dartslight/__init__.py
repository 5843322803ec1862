"""dartslight: search a neural architecture for your images, decide it with a method you can trust, train it, ship it."""

__version__ = "0.1.0"
