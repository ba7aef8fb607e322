"""The deployed side: engines behind one small interface, the chain on top, images in and answers out."""
