"""Models as files, in storage and on disk: what is checked before anything of them is loaded."""
