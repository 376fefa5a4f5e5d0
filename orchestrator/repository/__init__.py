"""Model repositories: rendering plans into them and checking what lies there."""
