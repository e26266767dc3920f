"""PROVE: a file is what its report says, byte for byte."""
