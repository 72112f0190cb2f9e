"""What geoseg does: compositions of the rooms below, one file each."""
