"""Models as ordered sequences of named layers: networks for images, language models, and a user's
own.
"""
