"""Whose work it is that keeps a GPU busy: ours, the online side's, and what nobody has declared.

`busy` measures the offline side, from job pages; `processes` sorts the processes on the GPU; `online` estimates what is
left for the online side.
"""
