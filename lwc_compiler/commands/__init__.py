"""The commands of `lwc`, and what they share."""
