"""WRITE: the bytes of the output, into a file, a folder or a stream."""
