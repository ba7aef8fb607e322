"""Engine `auto`: for each graph the fastest that answers as the reference did."""
