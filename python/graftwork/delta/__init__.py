"""The delta container: a codec registry, delta files, and the base that they are differences to."""
