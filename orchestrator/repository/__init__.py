"""Model repositories: rendering plans into them, and checking them."""
