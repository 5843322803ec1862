"""Taking a network home: what it costs, what it says of pictures, and as a file for other programs."""
