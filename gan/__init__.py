"""Image-to-image translation: options, training, checkpoints, translation, viewers."""

__version__ = "2.0"
"""Version of this program, as CHANGELOG.md counts it; stored in every checkpoint."""
