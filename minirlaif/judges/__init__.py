"""Judges that grade answers."""
