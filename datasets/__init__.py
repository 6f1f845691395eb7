"""Folders of pictures become batches of tensors; errors become lines. Knows no networks and no options."""
