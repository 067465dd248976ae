"""Models as ordered sequences of named layers: for images, for text, and a user's own."""
