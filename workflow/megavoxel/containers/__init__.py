"""Container images: the packages that go in, the build, and the lock that says what is in them."""
