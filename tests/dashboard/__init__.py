"""The template's dashboard over a rehearsed night, as a picture for the docs: `make dashboard`."""
