"""Checkpoints of lerobot and openpi: read, import and export. Nothing else in the package knows their names."""
