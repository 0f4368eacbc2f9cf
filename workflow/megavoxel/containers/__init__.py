"""Container images: their build, and the lock that describes them."""
