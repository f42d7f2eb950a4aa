"""The methods that the papers compare with, in short versions of our own."""
