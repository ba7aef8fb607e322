"""One query from prompt to masks: the pipeline, the graphs in order, the clock."""
