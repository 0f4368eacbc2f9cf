"""The formats of volumes: each module says in FORMATS which files it opens, and how."""
