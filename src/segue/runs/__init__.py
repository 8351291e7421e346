"""What a run leaves to read: its folder, its log and where else that goes, and the sections of its report."""
