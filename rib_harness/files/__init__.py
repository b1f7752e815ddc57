"""Where images lie: folders, archives, the Hub; and how they get there."""
