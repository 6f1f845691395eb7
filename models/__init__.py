"""Networks built from plain named arguments.

Nothing is imported here, so that `models.names` can be read without torch. Start at `models.build`.
"""
