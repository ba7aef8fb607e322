"""The deployed side: engines behind one interface, the chain on top, images in, answers out."""
