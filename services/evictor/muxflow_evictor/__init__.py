"""The evictor: has offline jobs put off a GPU that the online side needs, and tells people."""
