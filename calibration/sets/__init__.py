"""Questions and what is true of them: rendered scenes, folders."""
